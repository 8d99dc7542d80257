/**
 * Debian's `linux-source` package, fetched with the machine's own apt from the machine's own mirror.
 *
 * Why not a tarball from upstream: a machine behind a mirror reaches nothing else, and apt checks signatures.
 * apt's lists, cache and sources for it are private to the folder given: the machine's are only read.
 * @module
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** Versions whose formats are ours (kho-v4, luo-v5, memfd-v2), the best first. */
const VERSIONS = ["7.3", "7.2"] as const;
/** Where Debian keeps kernels newer than its release. */
const SUITES = ["trixie-backports", "experimental"] as const;

/** A package on the disk. */
export interface SourcePackage {
  readonly deb: string;
  /** Of the package, as "7.2.3-1~bpo13+1". */
  readonly version: string;
}

/** One stanza of apt's sources, as far as it matters here. */
interface AptSource {
  readonly uri: string;
  readonly suites: readonly string[];
  /** The value of Signed-By, which may be a key of many lines; null: apt's own keyring. */
  readonly signedBy: string | null;
}

/** Whether this machine is Debian and has apt. */
export function isDebian(): boolean {
  return existsSync("/etc/debian_version") && existsSync("/usr/bin/apt-get");
}

/**
 * Downloads the newest `linux-source` that we know the formats of.
 *
 * @param folder - for the package and apt's private files; exists
 * @throws {Error} saying what is missing
 */
export function downloadSource(folder: string): SourcePackage {
  const mirror = findMirror();
  const sources = join(folder, "apt", "sources.d");
  mkdirSync(sources, { recursive: true });
  for (const name of ["lists/partial", "cache/archives/partial", "state"])
    mkdirSync(join(folder, "apt", name), { recursive: true });
  writeFileSync(
    join(sources, "holdfast.sources"),
    `Types: deb\nURIs: ${mirror.uri}\nSuites: ${SUITES.join(" ")}\nComponents: main\n` +
      (mirror.signedBy === null ? "" : `Signed-By: ${mirror.signedBy}\n`),
  );
  const options = [
    `Dir::Etc::sourcelist=/dev/null`,
    `Dir::Etc::sourceparts=${sources}`,
    `Dir::State::Lists=${join(folder, "apt", "lists")}`,
    `Dir::Cache=${join(folder, "apt", "cache")}`,
    // A suite that cannot be fetched must not look like one without the package.
    "APT::Update::Error-Mode=any",
    // apt's own user may not be able to enter the folder.
    `APT::Sandbox::User=${process.env["USER"] ?? "root"}`,
  ].flatMap((option) => ["-o", option]);

  run("apt-get", [...options, "-q", "update"], folder);
  const found = VERSIONS.map((version) => `linux-source-${version}`).find((name) => {
    const policy = spawnSync("apt-cache", [...options, "policy", name], { encoding: "utf8" });
    return policy.status === 0 && /Candidate: \d/.test(policy.stdout);
  });
  if (found === undefined)
    throw new Error(
      `none of ${VERSIONS.map((v) => `linux-source-${v}`).join(", ")} is in ${SUITES.join(" or ")}`,
    );
  run("apt-get", [...options, "-q", "download", found], folder);
  return sourcePackage(folder, found);
}

/** The package of that name in a folder. */
function sourcePackage(folder: string, name: string): SourcePackage {
  const deb = readdirSync(folder).find((file) => file.startsWith(`${name}_`));
  if (deb === undefined) throw new Error(`apt-get download left no ${name}_*.deb in ${folder}`);
  return packageAt(join(folder, deb));
}

/** A package that is on the disk already. */
export function packageAt(deb: string): SourcePackage {
  const shown = spawnSync("dpkg-deb", ["-f", deb, "Version"], { encoding: "utf8" });
  if (shown.status !== 0) throw new Error(`${deb} is not a Debian package: ${shown.stderr}`);
  return { deb, version: shown.stdout.trim() };
}

/** Debian's archive as this machine reaches it: the source that its own release comes from. */
function findMirror(): AptSource {
  const release = /^VERSION_CODENAME=(\w+)/m.exec(readFileSync("/etc/os-release", "utf8"))?.[1];
  const names = [release, "stable", "testing", "unstable", "sid"];
  const mirror = aptSources().find(
    ({ uri, suites }) => !uri.includes("security") && suites.some((suite) => names.includes(suite)),
  );
  if (mirror === undefined)
    throw new Error(`/etc/apt has no source for ${release ?? "this release"} of Debian`);
  return mirror;
}

function aptSources(): AptSource[] {
  const parts = "/etc/apt/sources.list.d";
  const files = existsSync(parts) ? readdirSync(parts).map((name) => join(parts, name)) : [];
  const sources: AptSource[] = [];
  for (const file of ["/etc/apt/sources.list", ...files.sort()]) {
    if (!existsSync(file)) continue;
    const text = readFileSync(file, "utf8");
    if (file.endsWith(".sources")) sources.push(...parseStanzas(text));
    else if (file.endsWith(".list")) sources.push(...parseLines(text));
  }
  return sources;
}

/** The deb822 style of sources.list(5). */
export function parseStanzas(text: string): AptSource[] {
  const sources: AptSource[] = [];
  for (const stanza of text.split(/\n\s*\n/)) {
    const fields = new Map<string, string>();
    let name = "";
    for (const line of stanza.split("\n")) {
      if (line.startsWith("#")) continue;
      const field = /^([\w-]+):\s*(.*)$/.exec(line);
      if (field !== null) {
        name = field[1].toLowerCase();
        fields.set(name, field[2]);
      } else if (/^\s/.test(line)) fields.set(name, `${fields.get(name) ?? ""}\n${line}`);
    }
    const words = (field: string) => (fields.get(field) ?? "").trim().split(/\s+/);
    if (!words("types").includes("deb") || fields.get("enabled") === "no") continue;
    for (const uri of words("uris"))
      sources.push({ uri, suites: words("suites"), signedBy: fields.get("signed-by") ?? null });
  }
  return sources;
}

/** The one-line style of sources.list(5). */
export function parseLines(text: string): AptSource[] {
  const sources: AptSource[] = [];
  for (const line of text.split("\n")) {
    const match = /^deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)/.exec(line.trim());
    if (match === null) continue;
    const signedBy = /signed-by=(\S+)/.exec(match[1] ?? "")?.[1] ?? null;
    sources.push({ uri: match[2], suites: [match[3]], signedBy });
  }
  return sources;
}

function run(command: string, args: readonly string[], cwd: string): void {
  const { status, error } = spawnSync(command, args, {
    cwd,
    stdio: ["ignore", "inherit", "inherit"],
  });
  if (error !== undefined) throw new Error(`cannot run ${command}: ${error.message}`);
  if (status !== 0) throw new Error(`${command} ${args.at(-1)} failed with status ${status}`);
}
