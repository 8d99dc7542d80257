/**
 * What building and booting a kernel needs, and the line that installs what is missing.
 * @module
 */
import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";

/** A command or header and the Debian package that has it. */
interface Tool {
  readonly name: string;
  readonly debianPackage: string;
}

const commands = (pairs: Readonly<Record<string, string>>): Tool[] =>
  Object.entries(pairs).map(([name, debianPackage]) => ({ name, debianPackage }));

/** To build a kernel. */
export const BUILD_TOOLS: readonly Tool[] = [
  ...commands({
    make: "make",
    gcc: "gcc",
    ld: "binutils",
    flex: "flex",
    bison: "bison",
    bc: "bc",
    perl: "perl",
    tar: "tar",
    xz: "xz-utils",
    "dpkg-deb": "dpkg",
  }),
  { name: "/usr/include/stdlib.h", debianPackage: "libc6-dev" },
  { name: "/usr/include/gelf.h", debianPackage: "libelf-dev" },
  { name: "/usr/include/openssl/opensslv.h", debianPackage: "libssl-dev" },
];

/** To boot one, and to read what it left with other people's programs. */
export const BOOT_TOOLS: readonly Tool[] = commands({
  "qemu-system-x86_64": "qemu-system-x86",
  setpriv: "util-linux",
  ldd: "libc-bin",
});

/** To read a flattened device tree. */
export const FDT_TOOLS: readonly Tool[] = commands({
  dtc: "device-tree-compiler",
  fdtdump: "device-tree-compiler",
});

/**
 * What is missing, as a text for a person.
 *
 * @returns null when nothing is
 */
export function describeMissing(tools: readonly Tool[]): string | null {
  const missing = tools.filter(({ name }) => !isPresent(name));
  if (missing.length === 0) return null;
  const packages = [...new Set(missing.map((tool) => tool.debianPackage))];
  return (
    `missing: ${missing.map((tool) => tool.name).join(", ")}; ` +
    `to install: apt-get install -y --no-install-recommends ${packages.join(" ")}`
  );
}

function isPresent(name: string): boolean {
  if (name.startsWith("/")) return existsSync(name);
  return (process.env["PATH"] ?? "")
    .split(delimiter)
    .some((folder) => existsSync(join(folder, name)));
}
