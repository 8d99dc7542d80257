import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { skipUnless } from "../../../tests/support/skip.ts";
import { decompress } from "./decompress.ts";

const KERNEL = Buffer.from("\x7fELF and the rest of a kernel ".repeat(1000), "latin1");

/** As the kernel's build packs it: all but gzip with the unpacked size at the end. */
function pack(command: string, args: readonly string[], size = KERNEL.length): Buffer | null {
  const run = spawnSync(command, args, { input: KERNEL });
  if (run.error !== undefined) return null;
  assert.equal(run.status, 0, run.stderr.toString());
  const tail = Buffer.alloc(4);
  tail.writeUInt32LE(size);
  return Buffer.concat([run.stdout, tail]);
}

const PACKERS: readonly (readonly [name: string, command: string, args: readonly string[]])[] = [
  ["zstd", "zstd", ["-qc"]],
  ["xz", "xz", ["-c", "--check=crc32"]],
  ["lzma", "xz", ["-c", "--format=lzma"]],
  ["lz4", "lz4", ["-lqc"]],
  ["bzip2", "bzip2", ["-c"]],
  ["lzo", "lzop", ["-c"]],
];

test("decompress() unpacks gzip", () => {
  assert.deepEqual(decompress(gzipSync(KERNEL)), { bytes: KERNEL });
});

for (const [name, command, args] of PACKERS) {
  const packed = pack(command, args);
  const missing = packed === null ? `there is no program ${command} here` : null;
  const skip = skipUnless(`packed kernels (${name})`, missing);
  test(`decompress() unpacks ${name}, and checks the size`, { skip }, () => {
    assert.ok(packed !== null);
    assert.deepEqual(decompress(packed), { bytes: KERNEL });
    const wrong = decompress(pack(command, args, 5) ?? packed);
    assert.deepEqual(wrong, { reason: `its payload unpacks to ${KERNEL.length} bytes, not 5` });
    const damaged = Buffer.from(packed);
    damaged.fill(0, damaged.length >> 1);
    assert.match(
      "reason" in (decompress(damaged) as object) ? "refused" : "taken",
      /refused/,
      name,
    );
  });
}

test("decompress() says what it cannot unpack, and why", () => {
  const reason = (payload: Uint8Array) => {
    const result = decompress(payload);
    return "reason" in result ? result.reason : "";
  };
  assert.match(reason(new Uint8Array(0)), /unknown format/);
  assert.match(reason(Buffer.from("PK..")), /unknown format/);
  assert.match(reason(gzipSync(KERNEL).subarray(0, 40)), /gzip payload cannot be unpacked: /);
  const { PATH } = process.env;
  try {
    process.env.PATH = "/nonexistent";
    const xz = Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0, 0, 0, 0, 0, 0]);
    assert.match(reason(xz), /^its xz payload cannot be unpacked: there is no program xz here$/);
  } finally {
    process.env.PATH = PATH;
  }
});

test("decompress() does not unpack more than it may", () => {
  const packed = [gzipSync(KERNEL), pack("xz", ["-c", "--check=crc32"])];
  for (const one of packed) {
    if (one === null) continue;
    assert.ok("bytes" in decompress(one, KERNEL.length + 1));
    const refused = decompress(one, KERNEL.length - 1);
    assert.ok("reason" in refused && /payload cannot be unpacked/.test(refused.reason));
  }
});
