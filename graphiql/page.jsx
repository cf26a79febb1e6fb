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

/** A tab without an Authorization header uses the last one that was sent; never stored. */
function fetcher(params, options = {}) {
  const headers = { ...authorization, ...options.headers };
  const name = Object.keys(headers).findLast((key) => key.toLowerCase() === "authorization");
  authorization = name ? { [name]: headers[name] } : {};
  return send(params, { ...options, headers });
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
  >
    <GraphiQL.Logo>Signoff</GraphiQL.Logo>
  </GraphiQL>,
);
