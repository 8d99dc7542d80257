/**
 * Writes the machine's memory at each jump: as the old kernel has handed it over and the next one finds it.
 * @module
 */
import { accessSync, constants } from "node:fs";
import { dirname } from "node:path";
import { saveImage } from "../../inspect/image/save-image.ts";
import type { BootParameters, Firmware } from "../../machine/machine.ts";
import type { Ram } from "../../machine/physical-memory.ts";
import { UsageError } from "../usage-error.ts";

/** Stands for the update's number in a file's name. */
const UPDATE = "%u";

/** @throws {UsageError} when nothing can be written there */
export function checkImagePath(option: string, path: string): void {
  try {
    accessSync(dirname(path), constants.W_OK);
  } catch (error) {
    throw new UsageError(`${option} ${path}: ${(error as Error).message}`);
  }
}

/** @returns what to call in each jump */
export function imageSaver(
  path: string | null,
  machine: () => { readonly ram: Ram; readonly firmware: Firmware },
): (parameters: BootParameters) => void {
  let update = 0;
  return ({ kho }) => {
    update++;
    if (path === null || kho === null) return;
    const { ram, firmware } = machine();
    saveImage(path.replaceAll(UPDATE, String(update)), ram, { update, kho, firmware });
  };
}
