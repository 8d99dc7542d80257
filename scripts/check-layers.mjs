#!/usr/bin/env node
/**
 * Checks the layers of docs/architecture.md from the import paths: a folder of src imports only from itself
 * and from folders above it in the list, there is no import cycle, and the core uses no ambient time or chance.
 * Tests are not part of what they test: they may import anything, and nothing may import them.
 */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const problems = [];

/** Reads the order from the architecture's own list, so that text and check cannot part. */
function readLayers() {
  const text = readFileSync(join(root, "docs", "architecture.md"), "utf8");
  const list = /```\nsrc\/\n([\s\S]*?)```/.exec(text)?.[1];
  if (!list) throw new Error("docs/architecture.md has no source tree list");
  return [...list.matchAll(/^ {2}([a-z]+)\/ /gm)].map((match) => match[1]);
}

const layers = readLayers();
/** Below this layer, code is synchronous and deterministic: no Node API, no time, no chance. */
const CORE = new Set(layers.slice(0, layers.indexOf("kernel") + 1));
const NODE_ALLOWED = ["src/machine/thread/", "src/machine/qemu/"];
const AMBIENT =
  /\b(Math\.random|Date\.now|new Date|performance\.now|setTimeout|setInterval|console\.)\b/;

const files = readdirSync(join(root, "src"), { recursive: true })
  .map((name) => join("src", String(name)))
  .filter((name) => name.endsWith(".ts"));
const imports = new Map();

for (const file of files) {
  const text = readFileSync(join(root, file), "utf8");
  const layer = file.split("/")[1];
  const isTest = file.endsWith(".test.ts");
  if (!layers.includes(layer))
    problems.push(`${file}: src/${layer}/ is not in the architecture's list`);
  const targets = [];
  for (const match of text.matchAll(
    /^(?:import|export)\b[^;]*?from\s+"([^"]+)"|^import\s+"([^"]+)"|\bimport\(\s*"([^"]+)"/gm,
  )) {
    const specifier = match[1] ?? match[2] ?? match[3];
    if (!specifier.startsWith(".")) {
      const free =
        isTest || !CORE.has(layer) || NODE_ALLOWED.some((prefix) => file.startsWith(prefix));
      if (!free)
        problems.push(`${file}: imports ${specifier}: the core uses no packages and no Node API`);
      continue;
    }
    const target = relative(root, join(root, dirname(file), specifier));
    targets.push(target);
    const targetLayer = target.split("/")[1];
    if (!target.startsWith("src/")) {
      if (!isTest) problems.push(`${file}: imports ${target}, outside src`);
    } else if (!isTest && layers.indexOf(targetLayer) > layers.indexOf(layer))
      problems.push(`${file}: ${layer}/ must not import ${targetLayer}/ (${target})`);
    if (!isTest && target.endsWith(".test.ts")) problems.push(`${file}: imports a test, ${target}`);
  }
  if (!isTest) imports.set(file, targets);
  if (CORE.has(layer) && !isTest && !NODE_ALLOWED.some((prefix) => file.startsWith(prefix))) {
    text.split("\n").forEach((line, i) => {
      if (AMBIENT.test(line) && !/^\s*(\*|\/\/|\/\*)/.test(line))
        problems.push(`${file}:${i + 1}: ambient time or chance: ${line.trim()}`);
    });
  }
}

/** Finds import cycles, each named once. */
const state = new Map();
function visit(file, path) {
  if (state.get(file) === "done") return;
  if (state.get(file) === "open") {
    problems.push(`import cycle: ${[...path.slice(path.indexOf(file)), file].join(" → ")}`);
    return;
  }
  state.set(file, "open");
  for (const target of imports.get(file) ?? [])
    if (imports.has(target)) visit(target, [...path, file]);
  state.set(file, "done");
}
for (const file of imports.keys()) visit(file, []);

for (const problem of problems) console.error(problem);
process.exit(problems.length === 0 ? 0 : 1);
