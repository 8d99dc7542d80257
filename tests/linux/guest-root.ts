/**
 * The root of the Linux that tests boot: Node, the shared libraries that it needs, koffi, and this repository, compiled. A
 * folder of this machine, which the guest mounts read-only (9p).
 *
 * Why a folder: an initramfs of that size takes 100 MB of the guest's memory twice over, makes the kernel reserve more
 * than that for the next one's boot, and has to be loaded again for each jump. Of a folder only what is used is read.
 * @module
 */
import { spawnSync } from "node:child_process";
import {
  constants,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { type CpioEntry, encodeCpio } from "../../scripts/linux/cpio.ts";
import { repositoryRoot } from "../../scripts/linux/kernel-cache.ts";
import { PROGRAM_FOLDER } from "./guest/orders.ts";

/** Path of the first process, for the kernel's command line. */
export const INIT_PATH = "/init";
/** Where the first process mounts something. */
const MOUNT_POINTS = ["dev", "proc", "sys", "run", "tmp"];

/**
 * All files of the program, by path, in one: reading hundreds of them out of the root takes seconds in every boot. They
 * are unpacked into /dev, which the kernel has in memory before anything is mounted.
 */
const PROGRAM_ARCHIVE = "/lib/program.json";
const NOT_IN_GUEST = /\.test\.js$/;
const INIT = `#!/bin/node
const { mkdirSync, readFileSync, writeFileSync } = require("node:fs");
const { dirname } = require("node:path");
const made = new Set();
for (const [path, content] of JSON.parse(readFileSync("${PROGRAM_ARCHIVE}", "utf8"))) {
  const folder = dirname(path);
  if (!made.has(folder)) mkdirSync(folder, { recursive: true });
  made.add(folder);
  writeFileSync(path, content);
}
import("${PROGRAM_FOLDER}/tests/linux/guest/init.js");
`;

/**
 * @param folder - existing and empty
 */
export function writeGuestRoot(folder: string): void {
  const root = repositoryRoot();
  for (const name of [...MOUNT_POINTS, "boot", "etc"]) mkdirSync(join(folder, name));
  copy(process.execPath, join(folder, "bin", "node"));
  for (const library of librariesOf(process.execPath)) copy(library, join(folder, library));
  for (const name of ["koffi", "@koromix/koffi-linux-x64"])
    copyPackage(join("node_modules", name), folder);
  writeFileSync(join(folder, INIT_PATH), INIT, { mode: 0o755 });
  writeFileSync(join(folder, PROGRAM_ARCHIVE), programArchive(root));
  writeFileSync(join(folder, "etc", "passwd"), "root:x:0:0:root:/tmp:/bin/node\n");
  writeFileSync(join(folder, "etc", "group"), "root:x:0:\nholdfast:x:990:\n");
}

/** An initramfs in which a kernel finds no first process, so that it goes on to its root; with one file in it. */
export function emptyInitramfs(): Uint8Array {
  const entries: CpioEntry[] = [
    // The kernel opens it for the first process before anything is mounted.
    { kind: "folder", path: "dev" },
    { kind: "device", path: "dev/console", major: 5, minor: 1 },
    { kind: "file", path: "holdfast", bytes: Buffer.from("an initramfs\n"), executable: false },
  ];
  return encodeCpio(entries);
}

/** Compiles the repository, without a check of types, which is `npm run check`'s work: half a second. */
function programArchive(root: string): string {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-program-"));
  try {
    const tsc = join(root, "node_modules", "typescript", "bin", "tsc");
    const project = ["-p", join(root, "tsconfig.json"), "--outDir", folder, "--noCheck"];
    const once = ["--incremental", "false", "--tsBuildInfoFile", "null", "--sourceMap", "false"];
    const { status, stdout } = spawnSync(process.execPath, [tsc, ...project, ...once], {
      encoding: "utf8",
    });
    // 2: a file is not TypeScript, and was written as it is: whatever loads it fails.
    if (status !== 0 && status !== 2)
      throw new Error(`the guest's program does not compile: ${stdout}`);
    copy(join(root, "package.json"), join(folder, "package.json"));
    const files = filesBelow(folder).filter((path) => !NOT_IN_GUEST.test(path));
    return JSON.stringify(
      files.map((path) => [join(PROGRAM_FOLDER, path), readFileSync(join(folder, path), "utf8")]),
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function librariesOf(program: string): string[] {
  const { status, stdout } = spawnSync("ldd", [program], { encoding: "utf8" });
  if (status !== 0) throw new Error(`cannot tell which libraries ${program} needs: ldd failed`);
  return stdout
    .split("\n")
    .map((line) => /(?:=> )?(\/\S+) \(0x/.exec(line)?.[1])
    .filter((path) => path !== undefined);
}

/** What of an installed package runs. */
function copyPackage(name: string, folder: string): void {
  const source = join(repositoryRoot(), name);
  if (!existsSync(source)) throw new Error(`${name} is not there: npm ci`);
  for (const path of filesBelow(source))
    if (/\.(js|cjs|json|node)$/.test(path) && !path.includes("musl"))
      copy(join(source, path), join(folder, name, path));
}

/** Paths of all files below a folder. */
function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1));
}

function copy(from: string, to: string): void {
  mkdirSync(dirname(to), { recursive: true });
  copyFileSync(from, to, constants.COPYFILE_FICLONE);
}
