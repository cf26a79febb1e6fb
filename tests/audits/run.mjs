// Prints what each audit of GraphQL over HTTP found at the URL, as JSON.
import { serverAudits } from 'graphql-http';

const [url] = process.argv.slice(2);
const found = [];
for (const audit of serverAudits({ url })) {
  const { id, name, status, reason } = await audit.fn();
  found.push({ id, name, status, reason: reason ?? null });
}
console.log(JSON.stringify(found));
