/**
 * What all sessions of a kernel share, and the list of its file handlers.
 * @module
 */
import { LIVEUPDATE_HNDL_COMPAT_LENGTH } from "../../abi/luo.ts";
import { encodeUtf8 } from "../../abi/struct.ts";
import { assert } from "../../base/assert.ts";
import type { File } from "../vfs/file.ts";
import type { PreservedPages } from "./block-set.ts";
import type { FileHandler } from "./file-handler.ts";
import type { FlbRegistry } from "./flb-registry.ts";
import type { PreservedInodes } from "./preserved-inodes.ts";

/** The shared state that a session works on. */
export interface LiveUpdateCore extends PreservedPages {
  readonly handlers: HandlerRegistry;
  readonly flbs: FlbRegistry;
  readonly inodes: PreservedInodes;
}

/** File handlers in order of registration: the first that can preserve a file takes it. */
export class HandlerRegistry {
  readonly #byCompatible = new Map<string, FileHandler>();

  /** Each with a name of its own. */
  register(handler: FileHandler): void {
    const { compatible } = handler;
    const nameBytes = encodeUtf8(compatible).length;
    assert(
      nameBytes > 0 && nameBytes < LIVEUPDATE_HNDL_COMPAT_LENGTH,
      `handler name "${compatible}" is not of 1 to 47 bytes`,
    );
    assert(!this.#byCompatible.has(compatible), `two handlers are called "${compatible}"`);
    this.#byCompatible.set(compatible, handler);
  }

  byCompatible(compatible: string): FileHandler | undefined {
    return this.#byCompatible.get(compatible);
  }

  forFile(file: File): FileHandler | undefined {
    for (const handler of this.#byCompatible.values())
      if (handler.canPreserve(file)) return handler;
    return undefined;
  }
}
