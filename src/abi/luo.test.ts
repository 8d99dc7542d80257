import assert from "node:assert/strict";
import { test } from "node:test";
import {
  LUO_ABI_COMPATIBLE,
  LUO_FILE_SER,
  LUO_FLB_HEADER_SER,
  LUO_FLB_MAX,
  LUO_FLB_SER,
  LUO_SER,
  LUO_SESSION_SER,
} from "./luo.ts";
import {
  MEMFD_LUO_FOLIO_SER_BYTES,
  MEMFD_LUO_SER,
  memfdFolioFlags,
  memfdFolioIndex,
  memfdFolioPfn,
  writeMemfdFolio,
} from "./memfd.ts";
import * as liveupdate from "./uapi/liveupdate.ts";
import { ByteWords } from "./words.ts";

test("sizes and offsets are upstream's", () => {
  assert.deepEqual(
    [LUO_SER, LUO_SESSION_SER, LUO_FILE_SER, LUO_FLB_HEADER_SER, LUO_FLB_SER, MEMFD_LUO_SER].map(
      ({ name, sizeBytes, offset }) => [name, sizeBytes, ...Object.values(offset)],
    ),
    [
      ["luo_ser", 32, 0, 8, 16, 24],
      ["luo_session_ser", 80, 0, 64, 72],
      ["luo_file_ser", 64, 0, 48, 56],
      ["luo_flb_header_ser", 16, 0, 8],
      ["luo_flb_ser", 64, 0, 48, 56],
      ["memfd_luo_ser", 48, 0, 8, 16, 20, 24, 32],
    ],
  );
  assert.equal(LUO_FLB_MAX, 63);
});

test("luo_ser is these bytes", () => {
  const bytes = new Uint8Array(LUO_SER.sizeBytes);
  LUO_SER.write(new ByteWords(bytes), 0, {
    compatible: LUO_ABI_COMPATIBLE,
    liveupdate_num: 3,
    sessions_pa: 0x12345678000,
    flbs_pa: 0x1000,
  });
  const hex = Buffer.from(bytes).toString("hex");
  assert.equal(
    hex,
    "6c756f2d76350000" + "0300000000000000" + "0080674523010000" + "0010000000000000",
  );
});

test("a folio's frame number, flags and index share 16 bytes as upstream's bit fields do", () => {
  const bytes = new Uint8Array(MEMFD_LUO_FOLIO_SER_BYTES);
  const words = new ByteWords(bytes);
  const pfn = 2 ** 40 - 2;
  writeMemfdFolio(words, 0, pfn, 0xfff, 2 ** 40);
  assert.equal(Buffer.from(bytes).toString("hex"), "feffffffff00f0ff" + "0000000000010000");
  assert.equal(words.loadBig64(0), (0xfffn << 52n) | BigInt(pfn));
  assert.deepEqual(
    [memfdFolioPfn(words, 0), memfdFolioFlags(words, 0), memfdFolioIndex(words, 0)],
    [pfn, 0xfff, 2 ** 40],
  );
});

test("ioctl numbers and sizes are those of the uAPI", () => {
  assert.equal(liveupdate.LIVEUPDATE_IOCTL_CREATE_SESSION, 0xba00);
  assert.equal(liveupdate.LIVEUPDATE_IOCTL_RETRIEVE_SESSION, 0xba01);
  assert.equal(liveupdate.LIVEUPDATE_SESSION_PRESERVE_FD, 0xba40);
  assert.equal(liveupdate.LIVEUPDATE_SESSION_RETRIEVE_FD, 0xba41);
  assert.equal(liveupdate.LIVEUPDATE_SESSION_FINISH, 0xba42);
  assert.equal(liveupdate.LIVEUPDATE_SESSION_GET_NAME, 0xba43);
  assert.equal(liveupdate.LIVEUPDATE_IOCTL_CREATE_SESSION_ARG.sizeBytes, 72);
  assert.equal(liveupdate.LIVEUPDATE_IOCTL_RETRIEVE_SESSION_ARG.sizeBytes, 72);
  assert.equal(liveupdate.LIVEUPDATE_SESSION_PRESERVE_FD_ARG.sizeBytes, 16);
  assert.equal(liveupdate.LIVEUPDATE_SESSION_RETRIEVE_FD_ARG.sizeBytes, 16);
  assert.equal(liveupdate.LIVEUPDATE_SESSION_FINISH_ARG.sizeBytes, 8);
  assert.equal(liveupdate.LIVEUPDATE_SESSION_GET_NAME_ARG.sizeBytes, 72);
});
