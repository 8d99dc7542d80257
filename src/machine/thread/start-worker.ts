/**
 * Starts a worker thread from a module beside this file, compiled or not.
 *
 * Why: released code is JavaScript, but tests of a checkout may run the TypeScript itself under tsx, whose loader
 * worker threads of Node 20 do not inherit.
 * @module
 */
import { type MessagePort, Worker } from "node:worker_threads";

/**
 * @param name - of the module, without extension
 * @param data - its `workerData`
 * @param transfer - ports in `data`
 */
export function startWorker(name: string, data: unknown, transfer: MessagePort[]): Worker {
  const options = { workerData: data, transferList: transfer, name };
  if (!import.meta.url.endsWith(".ts"))
    return new Worker(new URL(`./${name}.js`, import.meta.url), options);
  const url = new URL(`./${name}.ts`, import.meta.url);
  const loader = process.execArgv.find((word) => /\/tsx\/dist\/loader\.mjs$/.test(word));
  // Another loader, or a Node that runs TypeScript: workers have it too.
  if (loader === undefined) return new Worker(url, options);
  const code = `import(process.argv[2]).then(({ register }) => { register(); return import(process.argv[3]); });`;
  const api = new URL("./esm/api/index.mjs", loader);
  return new Worker(code, { ...options, eval: true, argv: [api.href, url.href] });
}
