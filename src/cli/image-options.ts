/**
 * What the commands that read images have in common: how an image is named, opened and shown.
 * @module
 */
import { formatBytes, PAGE_SIZE, TIB } from "../base/units.ts";
import { type Handover, readHandover } from "../inspect/handover.ts";
import { ImageError } from "../inspect/image/elf-core.ts";
import { openImage } from "../inspect/image/open-image.ts";
import { isSystemError } from "../inspect/image/system-error.ts";
import { UsageError } from "./usage-error.ts";
import { parseSize } from "./values.ts";

/** Options of all of them. */
export const IMAGE_OPTIONS = {
  fdt: { type: "string" },
  "below-4g": { type: "string" },
  json: { type: "boolean", default: false },
} as const;

/** Their help. */
export const IMAGE_OPTIONS_HELP = `  --fdt ADDR       Physical address of KHO's root FDT. Otherwise the image's own note says where it
                   is, or all memory is searched; of several, one whose tree of preserved pages is
                   whole comes first, then one with sessions, then the one of the latest live
                   update, then the lowest address. "inspect" lists all that were found
  --below-4g SIZE  Of a raw file: RAM below 4 GiB (default: as QEMU's q35 decides by the size)
  --json           Print one JSON object, and nothing else, on standard output
  --help           Show this text`;

/** What images there are, for help texts. */
export const IMAGES_HELP = `IMAGE is a raw RAM file of QEMU (-object memory-backend-file), an ELF core (virsh dump
--memory-only, dump-guest-memory, vmcore), or what "holdfast demo --save-image" writes.`;

export interface ImageChoice {
  readonly fdtPa: number | null;
  readonly belowBytes: number | null;
}

/** A physical address: 0x and hexadecimal digits, or decimal. */
export function parseAddress(option: string, text: string): number {
  const value = Number(text);
  if (!/^(0x[0-9a-f]+|\d+)$/i.test(text) || value >= 2 ** 52)
    throw new UsageError(`${option} ${text}: not a physical address; write it as 0x12345000`);
  return value;
}

export function imageChoice(values: {
  readonly fdt?: string | undefined;
  readonly "below-4g"?: string | undefined;
}): ImageChoice {
  const below = values["below-4g"];
  const belowBytes = below === undefined ? null : parseSize("--below-4g", below, PAGE_SIZE, TIB);
  if (belowBytes !== null && (belowBytes > 2 ** 32 || belowBytes % PAGE_SIZE !== 0))
    throw new UsageError(`--below-4g ${below}: must be whole pages, at most 4 GiB`);
  return {
    fdtPa: values.fdt === undefined ? null : parseAddress("--fdt", values.fdt),
    belowBytes,
  };
}

/**
 * Opens an image, reads what it holds, and lets `use` look at it.
 * @returns what `use` returns; 1 when the image cannot be read, which is then told on standard error
 */
export function withImage(
  path: string,
  { fdtPa, belowBytes }: ImageChoice,
  use: (handover: Handover) => number,
): number {
  try {
    const image = openImage(path, { belowBytes });
    try {
      return use(readHandover(image, { fdtPa, onProgress: progress() }));
    } finally {
      image.close();
    }
  } catch (error) {
    if (!(error instanceof ImageError || isSystemError(error))) throw error;
    console.error(`holdfast: ${path}: ${error.message}`);
    return 1;
  }
}

const PROGRESS_EVERY_MS = 200;

/** How far a search has come, in one line on a terminal. */
function progress(): (done: number, total: number) => void {
  if (!process.stderr.isTTY) return () => {};
  let last = performance.now();
  let isShown = false;
  return (done, total) => {
    const now = performance.now();
    if (done < total && now - last < PROGRESS_EVERY_MS) return;
    if (done >= total && !isShown) return;
    last = now;
    isShown = true;
    const text = `searching for the FDT: ${formatBytes(done)} of ${formatBytes(total)}`;
    process.stderr.write(done < total ? `\r\u001b[K${text}` : "\r\u001b[K");
  };
}
