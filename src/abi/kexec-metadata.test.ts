import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { HandoverError } from "./handover-error.ts";
import { KHO_KEXEC_METADATA, readKexecMetadata } from "./kexec-metadata.ts";
import { ByteWords } from "./words.ts";

function blob(): Uint8Array {
  const bytes = new Uint8Array(KHO_KEXEC_METADATA.sizeBytes);
  KHO_KEXEC_METADATA.write(new ByteWords(bytes), 0, {
    version: 1,
    previous_release: "7.3.0-holdfast",
    kexec_count: 7,
  });
  return bytes;
}

describe("readKexecMetadata()", () => {
  it("reads the packed structure of 73 bytes", () => {
    assert.deepEqual(KHO_KEXEC_METADATA.offset, {
      version: 0,
      previous_release: 4,
      kexec_count: 69,
    });
    const bytes = blob();
    assert.equal(bytes.length, 73);
    assert.deepEqual(readKexecMetadata(new ByteWords(bytes), 73), {
      previousRelease: "7.3.0-holdfast",
      kexecCount: 7,
    });
  });

  const wrong: Record<keyof typeof KHO_KEXEC_METADATA.fields, (bytes: Uint8Array) => void> = {
    version: (bytes) => bytes.set([2, 0, 0, 0], 0),
    previous_release: (bytes) => bytes.fill(0x41, 4, 69),
    kexec_count: (bytes) => bytes.fill(0, 69, 73),
  };
  for (const field of Object.keys(KHO_KEXEC_METADATA.fields) as (keyof typeof wrong)[])
    it(`refuses a wrong ${field}`, () => {
      const bytes = blob();
      wrong[field](bytes);
      assert.throws(
        () => readKexecMetadata(new ByteWords(bytes), bytes.length),
        (error) => error instanceof HandoverError && error.field === `kho_kexec_metadata.${field}`,
      );
    });

  it("refuses a blob that is too short", () => {
    for (const size of [0, 4, 72])
      assert.throws(() => readKexecMetadata(new ByteWords(blob()), size), HandoverError);
  });
});
