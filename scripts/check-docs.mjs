#!/usr/bin/env node
/**
 * Checks that the documents keep their word: every requirement has a row with tests or says `open`, and every
 * test file and every local link that a document names exists.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const problems = [];
const read = (path) => readFileSync(join(root, path), "utf8");

/** The promises of the project: S, R and B rows. */
const REQUIRED = [
  ...Array.from({ length: 8 }, (_, i) => `S${i + 1}`),
  ...Array.from({ length: 22 }, (_, i) => `R${i + 1}`),
  ...Array.from({ length: 7 }, (_, i) => `B${i + 1}`),
];

const rows = new Map();
for (const line of read("docs/requirements.md").split("\n")) {
  const match = /^\| ([SRB]\d+) \|/.exec(line);
  if (!match) continue;
  if (rows.has(match[1])) problems.push(`docs/requirements.md: ${match[1]} has two rows`);
  rows.set(match[1], line);
}
for (const id of REQUIRED) {
  const row = rows.get(id);
  if (row === undefined) problems.push(`docs/requirements.md: no row for ${id}`);
  else if (!/\.test\.ts`/.test(row) && !/\bopen\b/.test(row))
    problems.push(`docs/requirements.md: ${id} names no test and is not \`open\``);
}

/** Names a test file in backticks, with or without the test's name behind it: `path.test.ts` "name". */
const TEST = /`([\w./-]+\.test\.ts)`(?: "([^"]+)")?/g;
const LINK = /\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)/g;
const documents = [
  "README.md",
  "CONTRIBUTING.md",
  ...readdirSync(join(root, "docs")).map((f) => `docs/${f}`),
];
for (const document of documents.filter((d) => d.endsWith(".md"))) {
  if (!existsSync(join(root, document))) {
    problems.push(`${document} does not exist`);
    continue;
  }
  const text = read(document);
  for (const [, path, name] of text.matchAll(TEST)) {
    if (!existsSync(join(root, path)))
      problems.push(`${document}: names ${path}, which does not exist`);
    else if (name && !read(path).includes(name))
      problems.push(`${document}: ${path} has no test "${name}"`);
  }
  for (const [, target] of text.matchAll(LINK))
    if (!existsSync(join(root, dirname(document), target)))
      problems.push(`${document}: links to ${target}, which does not exist`);
}

for (const problem of problems) console.error(problem);
process.exit(problems.length === 0 ? 0 : 1);
