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
  readdirSync,
  readFileSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { type CpioEntry, encodeCpio } from "../../scripts/linux/cpio.ts";
import { repositoryRoot } from "../../scripts/linux/kernel-cache.ts";
import { PROGRAM_ARCHIVE, PROGRAM_FOLDER } from "./guest/orders.ts";

/** Path of the first process, for the kernel's command line. */
export const INIT_PATH = "/init";
/** The same where the first process comes from. */
const LIBRARY_FOLDER = "/lib/program";
/** Where the first process mounts something. */
const MOUNT_POINTS = ["dev", "proc", "sys", "run", "tmp", PROGRAM_FOLDER];

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
  const library = join(folder, LIBRARY_FOLDER);
  compile(root, library);
  copy(join(root, "package.json"), join(library, "package.json"));
  const init = `#!/bin/node\nimport("${LIBRARY_FOLDER}/tests/linux/guest/init.js");\n`;
  writeFileSync(join(folder, INIT_PATH), init, { mode: 0o755 });
  const files = filesBelow(library).map((path) => [
    path,
    readFileSync(join(library, path), "utf8"),
  ]);
  writeFileSync(join(folder, PROGRAM_ARCHIVE), JSON.stringify(Object.fromEntries(files)));
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

/** Without a check of types, which is `npm run check`'s work: half a second. */
function compile(root: string, target: string): void {
  const tsc = join(root, "node_modules", "typescript", "bin", "tsc");
  const project = ["-p", join(root, "tsconfig.json"), "--outDir", target, "--noCheck"];
  const once = ["--incremental", "false", "--tsBuildInfoFile", "null"];
  const { status, stdout } = spawnSync(process.execPath, [tsc, ...project, ...once], {
    encoding: "utf8",
  });
  if (status !== 0) throw new Error(`the guest's program does not compile: ${stdout}`);
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
