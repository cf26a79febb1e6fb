// Builds signoff/static/graphiql from the packages in package-lock.json; see README.md there.
import { mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const target = join(here, "../signoff/static/graphiql");
const assets = join(target, "assets");

const common = {
  absWorkingDir: here,
  bundle: true,
  minify: true,
  metafile: true,
  target: "es2022",
  outdir: assets,
  entryNames: "[name]-[hash]",
  legalComments: "none", // LICENSES.txt has them
  logLevel: "warning",
  define: { "process.env.NODE_ENV": '"production"' },
};

/** GraphiQL's stylesheet has Monaco's in it; the fonts are the system's (see page.css). */
const styles = {
  name: "styles",
  setup({ onLoad }) {
    onLoad({ filter: /monaco-editor.*\.css$/ }, () => ({ contents: "", loader: "css" }));
    onLoad({ filter: /graphiql.dist.style\.css$/ }, async ({ path }) => {
      const css = await readFile(path, "utf8");
      const fonts = /@font-face\s*\{[^}]*(Roboto|Fira Code)[^}]*\}/g;
      return { contents: css.replaceAll(fonts, ""), loader: "css" };
    });
  },
};

/** The name of the file that was made of each entry. */
function made({ metafile }) {
  const outputs = Object.entries(metafile.outputs).filter(([, output]) => output.entryPoint);
  return Object.fromEntries(
    outputs.map(([file, { entryPoint }]) => [basename(entryPoint), basename(file)]),
  );
}

function buildWorkers() {
  return build({
    ...common,
    format: "iife",
    entryPoints: [
      "node_modules/monaco-editor/esm/vs/editor/editor.worker.js",
      "node_modules/monaco-editor/esm/vs/language/json/json.worker.js",
      "node_modules/monaco-graphql/esm/graphql.worker.js",
    ],
  });
}

function buildPage(workers) {
  return build({
    ...common,
    format: "esm",
    jsx: "automatic",
    entryPoints: ["page.jsx"],
    alias: { "graphiql/setup-workers/signoff": "./workers.js" },
    plugins: [styles],
    define: { ...common.define, WORKERS: JSON.stringify(workers) },
  });
}

function html({ metafile }) {
  const [file, { cssBundle }] = Object.entries(metafile.outputs).find(
    ([, output]) => output.entryPoint === "page.jsx",
  );
  return `<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8" />
    <meta name="viewport" content="width=device-width, initial-scale=1" />
    <title>Signoff · GraphiQL</title>
    <link rel="icon" href="data:," />
    <link rel="stylesheet" href="graphiql/assets/${basename(cssBundle)}" />
    <script type="module" src="graphiql/assets/${basename(file)}"></script>
  </head>
  <body>
    <div id="graphiql">Loading…</div>
  </body>
</html>
`;
}

/** The folder in node_modules of every package that a bundle took something from. */
function packages(results) {
  const inputs = results.flatMap(({ metafile }) => Object.keys(metafile.inputs));
  const folders = inputs.map((input) => input.match(/.*node_modules\/(@[^/]+\/)?[^/]+/)?.[0]);
  return [...new Set(folders.filter(Boolean))].sort();
}

async function licence(folder) {
  const { name, version, license } = JSON.parse(await readFile(join(here, folder, "package.json")));
  const files = await readdir(join(here, folder));
  const texts = files
    .filter((file) => /^(licen[cs]e|notice|thirdpartynotices)/i.test(file))
    .map((file) => readFile(join(here, folder, file), "utf8"));
  return [`${name} ${version} (${license})\n`, ...(await Promise.all(texts))].join("\n");
}

await rm(assets, { recursive: true, force: true });
await mkdir(assets, { recursive: true });
const workers = await buildWorkers();
const page = await buildPage(made(workers));
const licences = await Promise.all(packages([workers, page]).map(licence));
await writeFile(join(target, "LICENSES.txt"), licences.join(`\n${"-".repeat(80)}\n\n`));
await writeFile(join(target, "index.html"), html(page));
