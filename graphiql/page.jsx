import { useGraphiQLActions } from "@graphiql/react";
import { createGraphiQLFetcher } from "@graphiql/toolkit";
import { GraphiQL } from "graphiql";
import "graphiql/setup-workers/signoff";
import "graphiql/style.css";
import { createRoot } from "react-dom/client";
import "./page.css";

const endpoint = new URL("graphql", document.baseURI);
const socket = new URL(endpoint);
socket.protocol = socket.protocol.replace("http", "ws");

const send = createGraphiQLFetcher({
  url: endpoint.href,
  subscriptionUrl: socket.href, // headers become the payload of connection_init
  enableIncrementalDelivery: false,
});

let authorization = {};
let introspect;
let introspected = true;

/** A tab without an Authorization header uses the last one that was sent; never stored. */
function authorized(headers) {
  const merged = { ...authorization, ...headers };
  const name = Object.keys(merged).findLast((key) => key.toLowerCase() === "authorization");
  authorization = name ? { [name]: merged[name] } : {};
  return merged;
}

/** Where the schema was refused for want of a key, asks for it again with the first one typed. */
async function fetcher(params, options = {}) {
  const request = { ...options, headers: authorized(options.headers) };
  const answer = await send(params, request);
  if (params.operationName === "IntrospectionQuery") {
    introspected = Boolean(answer.data);
  } else if (!introspected && Object.keys(authorization).length > 0) {
    introspected = true;
    introspect();
  }
  return answer;
}

function Logo() {
  ({ introspect } = useGraphiQLActions());
  return "Signoff";
}

async function examples() {
  const response = await fetch(new URL("graphiql/examples.json", document.baseURI));
  return response.ok ? response.json() : undefined;
}

const defaultTabs = await examples();

createRoot(document.getElementById("graphiql")).render(
  <GraphiQL
    fetcher={fetcher}
    defaultTabs={defaultTabs}
    defaultEditorToolsVisibility="variables"
    showPersistHeadersSettings={false}
    plugins={[]} // no history: it stores headers, and so API keys
  >
    <GraphiQL.Logo>
      <Logo />
    </GraphiQL.Logo>
  </GraphiQL>,
);
