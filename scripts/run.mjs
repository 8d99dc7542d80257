#!/usr/bin/env node
/**
 * What `npm start`, `npm test`, `npm run check` and the others do: set the checkout up, then the work.
 *
 * Plain JavaScript, because it runs before anything is installed or built.
 */
import { spawnSync } from "node:child_process";
import { existsSync, lstatSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const NODE_MINIMUM = [20, 19];

/** Runs a program with our standard streams; ends this process when it fails. */
function run(command, args, options = {}) {
  const result = spawnSync(command, args, { cwd: root, stdio: "inherit", ...options });
  if (result.error) fail(`cannot run ${command}: ${result.error.message}`);
  if (result.signal) process.kill(process.pid, result.signal);
  if (result.status !== 0) process.exit(result.status ?? 1);
}

function fail(message) {
  console.error(`holdfast: ${message}`);
  process.exit(1);
}

function checkNode() {
  const [major, minor] = process.versions.node.split(".").map(Number);
  if (major < NODE_MINIMUM[0] || (major === NODE_MINIMUM[0] && minor < NODE_MINIMUM[1]))
    fail(`Node ${process.versions.node} is too old: it needs ${NODE_MINIMUM.join(".")} or newer`);
}

/**
 * Installs the locked dependencies unless exactly these were installed before. By content, not by time: a checkout that
 * touches the lock must not need a network.
 */
function ensureInstalled() {
  const modules = join(root, "node_modules");
  const stamp = join(modules, ".holdfast-lock");
  const lock = readFileSync(join(root, "package-lock.json"), "utf8");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === lock) return;
  // npm ci empties the folder first: not one that is somebody else's.
  if (existsSync(modules) && lstatSync(modules).isSymbolicLink())
    fail(
      "node_modules is a link, and what it leads to does not match package-lock.json: remove the link",
    );
  console.error("holdfast: installing dependencies (npm ci)");
  // On Windows npm is a script, which only a shell can start.
  run("npm", ["ci", "--no-audit", "--no-fund", "--loglevel=error"], {
    shell: process.platform === "win32",
    stdio: ["ignore", 2, 2],
  });
  writeFileSync(stamp, lock);
}

/** The path of a locally installed command's JavaScript entry. */
function bin(packageName, binName) {
  const folder = join(root, "node_modules", packageName);
  const manifest = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const entry = typeof manifest.bin === "string" ? manifest.bin : manifest.bin[binName];
  return join(folder, entry);
}

function tsc(...args) {
  run(process.execPath, [bin("typescript", "tsc"), ...args], { stdio: ["ignore", 2, 2] });
}

function biome(...args) {
  run(process.execPath, [bin("@biomejs/biome", "biome"), ...args]);
}

function filesBelow(folder, suffix) {
  if (!existsSync(join(root, folder))) return [];
  return readdirSync(join(root, folder), { recursive: true })
    .map((name) => join(folder, String(name)))
    .filter((name) => name.endsWith(suffix))
    .sort();
}

/** The compiled form of a source file. */
const compiled = (source) => join("dist", source.replace(/\.ts$/, ".js"));

function build() {
  ensureInstalled();
  const sources = new Set(
    ["src", "tests", "bench", "scripts"].flatMap((f) => filesBelow(f, ".ts").map(compiled)),
  );
  // What a deleted source left behind must not run again.
  for (const file of filesBelow("dist", ".js")) if (!sources.has(file)) rmSync(join(root, file));
  tsc("-p", "tsconfig.json");
}

function timed(name, action) {
  const start = process.hrtime.bigint();
  action();
  console.log(`${name.padEnd(8)} ok   ${Number((process.hrtime.bigint() - start) / 1000000n)} ms`);
}

const commands = {
  build,
  start(args) {
    build();
    run(process.execPath, [
      compiled("src/cli/main.ts"),
      ...(args[0]?.startsWith("-") === false ? args : ["demo", ...args]),
    ]);
  },
  test(args) {
    build();
    const wanted = args.filter((a) => !a.startsWith("-"));
    const options = args.filter((a) => a.startsWith("-"));
    const tests = ["src", "tests", "scripts"]
      .flatMap((folder) => filesBelow(folder, ".test.ts"))
      .filter((file) => wanted.length === 0 || wanted.some((w) => file.includes(relative(".", w))));
    if (tests.length === 0) fail(`no test file matches ${wanted.join(" ")}`);
    run(process.execPath, [
      "--enable-source-maps",
      "--test",
      "--test-reporter=spec",
      // Node takes a core less than there are: of two, one.
      `--test-concurrency=${Math.max(2, availableParallelism() - 1)}`,
      ...options,
      ...tests.map(compiled),
    ]);
  },
  check() {
    ensureInstalled();
    timed("types", () => tsc("-p", "tsconfig.json", "--noEmit"));
    timed("core", () => tsc("-p", "tsconfig.core.json"));
    timed("lint", () => biome("ci", "--error-on-warnings", "--log-level=warn", "."));
    timed("layers", () => run(process.execPath, ["scripts/check-layers.mjs"]));
    timed("docs", () => run(process.execPath, ["scripts/check-docs.mjs"]));
  },
  format() {
    ensureInstalled();
    biome("check", "--write", ".");
  },
  /** A Linux kernel with live update for tests/linux: found in the cache, or built into it. */
  "linux-kernel"() {
    build();
    run(process.execPath, [compiled("scripts/linux/build-kernel.ts")]);
  },
  bench(args) {
    build();
    run(process.execPath, ["--expose-gc", compiled("bench/main.ts"), ...args]);
  },
};

checkNode();
const [name, ...args] = process.argv.slice(2);
if (!Object.hasOwn(commands, name))
  fail(`unknown command ${name}; one of ${Object.keys(commands).join(", ")}`);
commands[name](args);
