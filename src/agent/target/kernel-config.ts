/**
 * The configuration of a Linux kernel: out of the kernel itself, or of the file that distributions put beside it.
 *
 * Source: Linux 7.3 kernel/configs.c (IKCONFIG), scripts/kconfig/confdata.c (the text's form)
 * @module
 */
import { gunzipSync } from "node:zlib";
import type { Host } from "../../host/host.ts";
import { readIfThere } from "./optional-file.ts";

/** Bytes of a configuration at most, packed or not. */
const CONFIG_BYTES_MAX = 4 * 1024 * 1024;
const START = "IKCFG_ST";
const END = "IKCFG_ED";

/** A configuration and where it comes from. */
export class KernelConfig {
  readonly #text: string;
  /** For a person. */
  readonly source: string;

  constructor(text: string, source: string) {
    this.#text = text;
    this.source = source;
  }

  /** "y", "m", a number, a string without its quotes; "n" when it is not set. @param name - without CONFIG_ */
  value(name: string): string {
    const value = new RegExp(`^CONFIG_${name}=(.*)$`, "m").exec(this.#text)?.[1] ?? "n";
    return /^"(.*)"$/.exec(value)?.[1].replaceAll(/\\(.)/g, "$1") ?? value;
  }

  isSet(name: string): boolean {
    return this.value(name) === "y";
  }
}

/** The one that a kernel carries in itself (CONFIG_IKCONFIG=y); null when it carries none that can be read. */
export function embeddedConfig(vmlinux: Uint8Array): KernelConfig | null {
  const bytes = Buffer.from(vmlinux.buffer, vmlinux.byteOffset, vmlinux.byteLength);
  const start = bytes.indexOf(START, 0, "latin1");
  const end = start < 0 ? -1 : bytes.indexOf(END, start, "latin1");
  if (end < 0 || end - start > CONFIG_BYTES_MAX) return null;
  const text = unpackConfig(bytes.subarray(start + START.length, end));
  return text === null ? null : new KernelConfig(text, "the image itself");
}

/** The one beside a kernel of that release; null when there is none. @throws {KernelError} what read(2) throws */
export function installedConfig(host: Host, release: string): KernelConfig | null {
  // A release goes into paths: it is no path itself.
  if (release.includes("/")) return null;
  for (const path of [`/boot/config-${release}`, `/lib/modules/${release}/config`]) {
    const bytes = readIfThere(host, path, CONFIG_BYTES_MAX);
    if (bytes !== null) return new KernelConfig(new TextDecoder().decode(bytes), path);
  }
  return null;
}

/** The text of a packed configuration; null when it is no gzip, or unpacks to more than 4 MiB. */
export function unpackConfig(packed: Uint8Array): string | null {
  try {
    return gunzipSync(packed, { maxOutputLength: CONFIG_BYTES_MAX }).toString("utf8");
  } catch (error) {
    if (!(error instanceof Error && "code" in error)) throw error;
    return null;
  }
}
