/**
 * The root of the Linux that tests boot: Node, the shared libraries that it needs, koffi for system calls, and the test's
 * program. Node itself is the first process, so there is no shell and no other program.
 *
 * What seldom changes (Node, libraries, koffi) is packed once and kept in the cache, by the hash of its content; the
 * program comes behind it as a second archive. No compression: the emulated processor takes longer to
 * unpack than to read.
 * @module
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { type CpioEntry, encodeCpio, withFolders } from "./cpio.ts";
import { cacheFolder, repositoryRoot } from "./kernel-cache.ts";

/** Where Node is in there. */
export const NODE_PATH = "/bin/node";
/** Folder of the program. */
export const PROGRAM_FOLDER = "program";
/** Changes with what this file makes of its sources. */
const ARCHIVE_FORMAT = "1";
const CACHED_ARCHIVES_MAX = 2;

/**
 * @param program - the program's folder, with everything that it imports but koffi
 * @param main - path of its entry in that folder
 * @param files - more files, by their path without a leading slash
 * @returns the archives, to be written one after another
 */
export function buildInitramfs(
  program: string,
  main: string,
  files: ReadonlyMap<string, Uint8Array>,
): readonly Uint8Array[] {
  const entries: CpioEntry[] = [
    {
      kind: "file",
      path: "init",
      // A shebang line takes one argument, so Node is told the module by a line of its own.
      bytes: Buffer.from(`#!${NODE_PATH}\nimport("/${PROGRAM_FOLDER}/${main}");\n`),
      executable: true,
    },
    ...filesBelow(program).map(
      (path): CpioEntry => ({
        kind: "file",
        path: `${PROGRAM_FOLDER}/${path}`,
        bytes: readFileSync(join(program, path)),
        executable: false,
      }),
    ),
    ...[...files].map(
      ([path, bytes]): CpioEntry => ({
        kind: "file",
        path,
        bytes,
        executable: false,
      }),
    ),
  ];
  return [readFileSync(baseArchive()), encodeCpio(withFolders(entries))];
}

/** Path of the archive with Node, its libraries and koffi; made when it is not in the cache. */
function baseArchive(): string {
  const sources = [
    ...nodeAndLibraries(),
    ...packageFiles("koffi"),
    ...packageFiles("@koromix/koffi-linux-x64"),
  ];
  const hash = createHash("sha256").update(ARCHIVE_FORMAT);
  for (const { path, from } of sources) hash.update(`\0${path}\0`).update(readFileSync(from));
  const name = `initramfs-${hash.digest("hex").slice(0, 16)}.cpio`;
  const archive = join(cacheFolder(), name);
  if (existsSync(archive)) {
    utimesSync(archive, new Date(), new Date());
    return archive;
  }
  mkdirSync(cacheFolder(), { recursive: true });
  const work = mkdtempSync(join(cacheFolder(), "initramfs-"));
  try {
    const entries: CpioEntry[] = [
      ...["dev", "proc", "sys", "tmp"].map((path): CpioEntry => ({ kind: "folder", path })),
      // The kernel opens it for the first process before anything is mounted.
      { kind: "device", path: "dev/console", major: 5, minor: 1 },
      ...sources.map(
        ({ path, from }): CpioEntry => ({
          kind: "file",
          path,
          bytes: readFileSync(stripped(from, work)),
          executable: true,
        }),
      ),
    ];
    const file = join(work, name);
    writeFileSync(file, encodeCpio(withFolders(entries)));
    renameSync(file, archive);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  forgetOldArchives();
  return archive;
}

/** Node's symbols are a sixth of it. Scripts stay as they are. */
function stripped(from: string, work: string): string {
  if (from !== process.execPath) return from;
  const to = join(work, "stripped");
  const result = spawnSync("strip", ["-o", to, from], { encoding: "utf8" });
  if (result.status !== 0) throw new Error(`cannot strip ${from}: ${result.stderr}`);
  return to;
}

interface Source {
  readonly path: string;
  readonly from: string;
}

function nodeAndLibraries(): Source[] {
  const node = process.execPath;
  const { status, stdout } = spawnSync("ldd", [node], { encoding: "utf8" });
  if (status !== 0) throw new Error(`cannot tell which libraries ${node} needs: ldd failed`);
  const libraries = stdout
    .split("\n")
    .map((line) => /(?:=> )?(\/\S+) \(0x/.exec(line)?.[1])
    .filter((path) => path !== undefined);
  return [
    { path: NODE_PATH.slice(1), from: node },
    ...libraries.map((path) => ({ path: path.slice(1), from: path })),
  ];
}

/** What of an installed package runs. */
function packageFiles(name: string): Source[] {
  const folder = join(repositoryRoot(), "node_modules", name);
  if (!existsSync(folder)) throw new Error(`${name} is not installed: npm ci`);
  return filesBelow(folder)
    .filter((path) => /\.(js|cjs|json|node)$/.test(path) && !path.includes("musl"))
    .map((path) => ({ path: join("node_modules", name, path), from: join(folder, path) }));
}

/** Paths of all files below a folder, sorted. */
function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1))
    .sort();
}

/** Each version of Node leaves 80 MB behind. */
function forgetOldArchives(): void {
  const cache = cacheFolder();
  const archives = readdirSync(cache)
    .filter((name) => /^initramfs-[0-9a-f]+\.cpio$/.test(name))
    .map((name) => join(cache, name))
    .sort((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs);
  for (const archive of archives.slice(CACHED_ARCHIVES_MAX)) rmSync(archive, { force: true });
}
