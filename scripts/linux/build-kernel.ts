/**
 * `npm run linux:kernel`: a Linux kernel with live update for the tests, from Debian's `linux-source` package.
 *
 * Debian's own kernels have KEXEC_HANDOVER off, so one is built: `tinyconfig` and the fragment beside this file, about
 * 200 s on two cores and 2.6 MB. It is built once; HOLDFAST_KERNEL=path is taken instead, and
 * HOLDFAST_LINUX_SOURCE=file.deb spares the download.
 * @module
 */
import { spawn, spawnSync } from "node:child_process";
import {
  copyFileSync,
  createWriteStream,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
} from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { downloadSource, isDebian, packageAt } from "./debian-source.ts";
import { cacheFolder, findKernel, kernelFolder, kernelFragment } from "./kernel-cache.ts";
import { BUILD_TOOLS, describeMissing } from "./tools.ts";

/** Parts of the tree that no x86 build reads: half of its bytes. */
const NOT_NEEDED = [
  "*/drivers/gpu/drm/amd/include/*",
  "*/arch/arm/boot/dts/*",
  "*/arch/arm64/boot/dts/*",
  "*/Documentation/devicetree/bindings/*",
  "*/tools/testing/selftests/*",
];
/** The same sources give the same kernel on every machine. */
const REPRODUCIBLE = {
  KBUILD_BUILD_TIMESTAMP: "Thu Jan  1 00:00:00 UTC 1970",
  KBUILD_BUILD_USER: "holdfast",
  KBUILD_BUILD_HOST: "holdfast",
};
const PROGRESS_MS = 15_000;

class BuildError extends Error {}

async function main(): Promise<void> {
  const found = findKernel();
  if (found !== null) {
    console.log(`Linux kernel for the tests: ${found.bzImage}`);
    return;
  }
  if (process.platform !== "linux" || process.arch !== "x64" || !isDebian())
    throw new BuildError(
      "a kernel is built from Debian's linux-source package, on Debian on x86-64; elsewhere build Linux 7.2 or " +
        `newer with tinyconfig and ${kernelFragment()}, and set HOLDFAST_KERNEL to its bzImage`,
    );
  const missing = describeMissing(BUILD_TOOLS);
  if (missing !== null) throw new BuildError(missing);

  mkdirSync(cacheFolder(), { recursive: true });
  const work = mkdtempSync(join(cacheFolder(), "build-"));
  const remove = () => rmSync(work, { recursive: true, force: true });
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
    process.once(signal, () => {
      remove();
      process.exit(1);
    });
  try {
    console.log("1/4 linux-source package");
    const given = process.env["HOLDFAST_LINUX_SOURCE"];
    const source = given ? packageAt(given) : downloadSource(work);
    console.log(`2/4 unpacking ${source.version}`);
    const tree = unpack(source.deb, work);
    console.log("3/4 configuration");
    configure(tree);
    console.log("4/4 building: a few minutes");
    await build(tree, join(cacheFolder(), "build.log"));
    console.log(`Linux kernel for the tests: ${install(tree, source.version)}`);
  } finally {
    remove();
  }
}

/** @returns the folder of the sources */
function unpack(deb: string, work: string): string {
  run("dpkg-deb", ["-x", deb, join(work, "package")], work);
  const folder = join(work, "package", "usr", "src");
  const archive = readdirSync(folder).find((name) => name.endsWith(".tar.xz"));
  if (archive === undefined) throw new BuildError(`${deb} has no usr/src/*.tar.xz`);
  const tree = join(work, "tree");
  mkdirSync(tree);
  const excludes = NOT_NEEDED.map((pattern) => `--exclude=${pattern}`);
  const from = join(folder, archive);
  run("tar", ["-C", tree, "--strip-components=1", ...excludes, "-xf", from], work);
  return tree;
}

function configure(tree: string): void {
  run("make", ["-s", "tinyconfig"], tree);
  run("scripts/kconfig/merge_config.sh", ["-m", ".config", kernelFragment()], tree, "ignore");
  run("make", ["-s", "olddefconfig"], tree);
  // Kconfig drops in silence what it does not know and what lacks a dependency.
  const lines = new Set(readFileSync(join(tree, ".config"), "utf8").split("\n"));
  const dropped = readFileSync(kernelFragment(), "utf8")
    .split("\n")
    .filter((line) => line.startsWith("CONFIG_") && line.endsWith("=y") && !lines.has(line));
  const needed = dropped.filter((line) => /KEXEC|LIVEUPDATE|MEMFD|DEBUG_FS|RD_GZIP/.test(line));
  if (needed.length > 0)
    throw new BuildError(`these sources cannot be built with ${needed.join(" ")}`);
  if (dropped.length > 0) console.log(`    not in these sources: ${dropped.join(" ")}`);
}

/** Builds with the output in a file, and says now and then how far it is. */
async function build(tree: string, logPath: string): Promise<void> {
  const log = createWriteStream(logPath);
  const jobs = `-j${availableParallelism()}`;
  const make = spawn("make", [jobs, "bzImage"], {
    cwd: tree,
    env: { ...process.env, ...REPRODUCIBLE },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const end = new Promise<number | null>((resolve, reject) => {
    make.once("error", reject);
    make.once("close", resolve);
  });
  const stop = () => make.kill();
  process.once("exit", stop);
  let compiled = 0;
  make.stdout.on("data", (chunk: Buffer) => {
    for (const line of chunk.toString().split("\n")) if (/^ {2}(CC|AS) /.test(line)) compiled++;
  });
  make.stdout.pipe(log, { end: false });
  make.stderr.pipe(log, { end: false });
  const start = Date.now();
  const report = setInterval(
    () =>
      console.log(`    ${compiled} files compiled, ${Math.round((Date.now() - start) / 1000)} s`),
    PROGRESS_MS,
  );
  const status = await end;
  clearInterval(report);
  process.removeListener("exit", stop);
  await new Promise<void>((resolve) => log.end(() => resolve()));
  if (status !== 0) {
    const errors = readFileSync(logPath, "utf8")
      .split("\n")
      .filter((l) => /error|\*\*\*/i.test(l));
    throw new BuildError(
      `the kernel did not build; its output is in ${logPath}:\n${errors.slice(0, 10).join("\n")}`,
    );
  }
}

/** Moves what is kept to its place in one step, so that nobody finds half of it. */
function install(tree: string, version: string): string {
  const kept = join(tree, "kept");
  mkdirSync(kept);
  copyFileSync(join(tree, "arch", "x86", "boot", "bzImage"), join(kept, "bzImage"));
  copyFileSync(join(tree, ".config"), join(kept, "config"));
  const folder = kernelFolder(version);
  if (existsSync(folder)) rmSync(folder, { recursive: true });
  renameSync(kept, folder);
  return join(folder, "bzImage");
}

function run(
  command: string,
  args: readonly string[],
  cwd: string,
  stdout: "inherit" | "ignore" = "inherit",
): void {
  const result = spawnSync(command, args, { cwd, stdio: ["ignore", stdout, "inherit"] });
  if (result.error !== undefined) throw result.error;
  if (result.status !== 0) throw new BuildError(`${command} ${args.join(" ")} failed`);
}

try {
  await main();
} catch (error) {
  console.error(`holdfast: ${error instanceof Error ? error.message : error}`);
  process.exit(1);
}
