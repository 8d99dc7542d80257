import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { HandoverError } from "../../abi/handover-error.ts";
import { readKhoFdt } from "../../abi/kho.ts";
import { KHO_BLOCK_HEADER_SER } from "../../abi/kho-block.ts";
import {
  LUO_FILE_SER,
  LUO_FLB_HEADER_SER,
  LUO_FLB_SER,
  LUO_SER,
  LUO_SESSION_SER,
} from "../../abi/luo.ts";
import type { FileHandler } from "./file-handler.ts";
import { preserveFile, Rig, ToyFile, ToyFlb, ToyHandler } from "./test-rig.ts";

/** Where everything is in a frozen handover of two sessions with two files each, and one FLB. */
interface Frozen {
  readonly rig: Rig;
  readonly luo: number;
  readonly flbs: number;
  readonly flb: number;
  readonly sessionBlock: number;
  readonly session: (index: number) => number;
  readonly fileBlock: number;
  readonly file: (index: number) => number;
}

function freeze(handlers?: (rig: Rig) => readonly FileHandler[]): Frozen {
  const rig = Rig.cold({ handlers: handlers ?? (() => [new ToyHandler([], [new ToyFlb([])])]) });
  for (const name of ["a", "b"]) {
    const session = rig.luo.createSession(name);
    for (const id of [1, 2]) preserveFile(rig, session, new ToyFile(id), BigInt(id));
  }
  rig.luo.freeze();
  const { fdtAddress, fdtSizeBytes } = rig.kho.bootParameters();
  const { subtrees } = readKhoFdt(rig.ram, fdtAddress, fdtSizeBytes);
  const luo = subtrees.find((one) => one.name === "LUO")?.pa ?? 0;
  const { sessions_pa: sessionBlock, flbs_pa: flbs } = LUO_SER.read(rig.ram, luo);
  const session = (i: number) => sessionBlock + 16 + i * LUO_SESSION_SER.sizeBytes;
  const fileBlock = LUO_SESSION_SER.read(rig.ram, session(0)).files;
  return {
    rig,
    luo,
    flbs,
    flb: flbs + LUO_FLB_HEADER_SER.sizeBytes,
    sessionBlock,
    session,
    fileBlock,
    file: (i) => fileBlock + 16 + i * LUO_FILE_SER.sizeBytes,
  };
}

/** The next kernel refuses the handover, naming `field`, and has changed nothing. */
function refuses(frozen: Frozen, field: string | RegExp, options = {}): void {
  const { rig } = frozen;
  const calls: string[] = [];
  const handlers = () => [new ToyHandler(calls, [new ToyFlb(calls)])];
  const next = Rig.enter(rig.ram, rig.kho.bootParameters(), { handlers, ...options });
  const before = next.usage();
  assert.throws(
    () => next.luo.decode(),
    (error: unknown) => {
      assert.ok(error instanceof HandoverError, String(error));
      if (typeof field === "string") assert.equal(error.field, field);
      else assert.match(error.field, field);
      return true;
    },
  );
  assert.deepEqual(next.usage(), before);
  assert.equal(
    calls.some((call) => call.includes("adopt")),
    false,
  );
}

type Wrong = readonly [change: (frozen: Frozen) => void, field: string | RegExp];

/** Bad values of every field; a field of the layout without an entry fails the test. */
const WRONG: readonly {
  readonly layout: { readonly name: string; readonly fields: object };
  readonly fields: Readonly<Record<string, readonly Wrong[]>>;
}[] = [
  {
    layout: LUO_SER,
    fields: {
      compatible: [
        [({ rig, luo }) => rig.ram.store8(luo + 5, 0x36), "luo_ser.compatible"],
        [({ rig, luo }) => rig.ram.fill(luo, 8, 0x61), "luo_ser.compatible"],
      ],
      liveupdate_num: [
        [({ rig, luo }) => rig.ram.store64(luo + 8, 0), "luo_ser.liveupdate_num"],
        [({ rig, luo }) => rig.ram.store32(luo + 12, 2 ** 31), "luo_ser.liveupdate_num"],
        // The last number that could be read, but not be counted on from.
        [({ rig, luo }) => rig.ram.store64(luo + 8, 2 ** 53 - 1), "luo_ser.liveupdate_num"],
      ],
      sessions_pa: [
        [({ rig, luo }) => rig.ram.store64(luo + 16, 8), "luo_ser.sessions_pa"],
        [({ rig, luo }) => rig.ram.store64(luo + 16, 2 ** 50), "luo_ser.sessions_pa"],
        [({ rig, luo }) => rig.ram.store64(luo + 16, luo), "luo_ser.sessions_pa"],
        [({ rig, luo, flbs }) => rig.ram.store64(luo + 16, flbs), "luo_ser.sessions_pa"],
        // No sessions at all: then nobody needs the FLB.
        [({ rig, luo }) => rig.ram.store64(luo + 16, 0), "luo_flb_ser[0].count"],
      ],
      flbs_pa: [
        [({ rig, luo }) => rig.ram.store64(luo + 24, 4095), "luo_ser.flbs_pa"],
        [({ rig, luo }) => rig.ram.store64(luo + 24, luo), "luo_ser.flbs_pa"],
        [
          ({ rig, luo }) => rig.ram.store64(luo + 24, 0),
          "luo_session_ser[0].luo_file_ser[0].compatible",
        ],
      ],
    },
  },
  {
    layout: LUO_FLB_HEADER_SER,
    fields: {
      pgcnt: [[({ rig, flbs }) => rig.ram.store64(flbs, 2), "luo_flb_header_ser.pgcnt"]],
      count: [
        [({ rig, flbs }) => rig.ram.store64(flbs + 8, 64), "luo_flb_header_ser.count"],
        [({ rig, flbs }) => rig.ram.store32(flbs + 12, 1), "luo_flb_header_ser.count"],
        [({ rig, flbs }) => rig.ram.store64(flbs + 8, 2), "luo_flb_ser[1].name"],
      ],
    },
  },
  {
    layout: LUO_FLB_SER,
    fields: {
      name: [
        [({ rig, flb }) => rig.ram.store8(flb, 0x58), "luo_flb_ser[0].name"],
        [({ rig, flb }) => rig.ram.fill(flb, 48, 0x61), "luo_flb_ser[0].name"],
        [
          ({ rig, flbs, flb }) => {
            const one = LUO_FLB_SER.read(rig.ram, flb);
            LUO_FLB_SER.write(rig.ram, flb + LUO_FLB_SER.sizeBytes, one);
            rig.ram.store64(flbs + 8, 2);
          },
          "luo_flb_ser[1].name",
        ],
      ],
      // Its decoder's affair, as a file's data.
      data: [],
      count: [
        [({ rig, flb }) => rig.ram.store64(flb + 56, 3), "luo_flb_ser[0].count"],
        [({ rig, flb }) => rig.ram.store64(flb + 56, 0), "luo_flb_ser[0].count"],
      ],
    },
  },
  {
    layout: LUO_SESSION_SER,
    fields: {
      name: [
        [({ rig, session }) => rig.ram.store8(session(1), 0), "luo_session_ser[1].name"],
        [({ rig, session }) => rig.ram.store8(session(1), 0x61), "luo_session_ser[1].name"],
        [({ rig, session }) => rig.ram.store8(session(1), 0xff), "luo_session_ser[1].name"],
        [({ rig, session }) => rig.ram.fill(session(0), 64, 0x61), "luo_session_ser[0].name"],
      ],
      files: [
        [({ rig, session }) => rig.ram.store64(session(1) + 64, 0), "luo_session_ser[1].count"],
        [({ rig, session }) => rig.ram.store64(session(1) + 64, 1), "luo_session_ser[1].files"],
        [
          ({ rig, session, fileBlock }) => rig.ram.store64(session(1) + 64, fileBlock),
          "luo_session_ser[1].files",
        ],
      ],
      count: [
        [({ rig, session }) => rig.ram.store64(session(0) + 72, 0), "luo_session_ser[0].count"],
        [({ rig, session }) => rig.ram.store64(session(0) + 72, 3), "luo_session_ser[0].count"],
      ],
    },
  },
  {
    layout: LUO_FILE_SER,
    fields: {
      compatible: [
        [
          ({ rig, file }) => rig.ram.store8(file(1) + 5, 0x32),
          "luo_session_ser[0].luo_file_ser[1].compatible",
        ],
        [
          ({ rig, file }) => rig.ram.fill(file(0), 48, 0x80),
          "luo_session_ser[0].luo_file_ser[0].compatible",
        ],
        // A memfd needs no FLB, and its data is not a memfd's.
        [
          ({ rig, file }) => rig.ram.write(file(0), new TextEncoder().encode("memfd-v2\0")),
          'session "a" token 0x1 data',
        ],
      ],
      data: [],
      token: [
        [
          ({ rig, file }) => rig.ram.store64(file(1) + 56, 1),
          "luo_session_ser[0].luo_file_ser[1].token",
        ],
      ],
    },
  },
  {
    layout: KHO_BLOCK_HEADER_SER,
    fields: {
      next: [
        [
          ({ rig, sessionBlock }) => rig.ram.store64(sessionBlock, sessionBlock),
          /^luo_ser.sessions_pa: kho_block_header_ser\[0\].next$/,
        ],
        [
          ({ rig, fileBlock }) => rig.ram.store64(fileBlock, 2 ** 40),
          /^luo_session_ser\[0\].files: kho_block_header_ser\[0\].next$/,
        ],
      ],
      count: [
        [
          ({ rig, sessionBlock }) => rig.ram.store64(sessionBlock + 8, 0),
          /^luo_ser.sessions_pa: kho_block_header_ser\[0\].count$/,
        ],
        [
          ({ rig, fileBlock }) => rig.ram.store64(fileBlock + 8, 64),
          /^luo_session_ser\[0\].files: kho_block_header_ser\[0\].count$/,
        ],
        [({ rig, fileBlock }) => rig.ram.store64(fileBlock + 8, 1), "luo_session_ser[0].count"],
      ],
    },
  },
];

describe("decode()", () => {
  test("takes what is right", () => {
    const { rig } = freeze();
    const handlers = () => [new ToyHandler([], [new ToyFlb([])])];
    const next = Rig.enter(rig.ram, rig.kho.bootParameters(), { handlers }).boot();
    assert.deepEqual(next.luo.counts().incomingSessions, 2);
  });

  for (const { layout, fields } of WRONG) {
    test(`refuses every wrong field of ${layout.name} by name`, () => {
      assert.deepEqual(Object.keys(fields), Object.keys(layout.fields));
      for (const wrongs of Object.values(fields))
        for (const [change, field] of wrongs) {
          const frozen = freeze();
          change(frozen);
          refuses(frozen, field);
        }
    });
  }

  test("refuses a handler or an FLB that it does not know", () => {
    refuses(freeze(), "luo_flb_ser[0].name", { handlers: () => [] });
    const bare = () => [new ToyHandler([])];
    refuses(freeze(bare), "luo_session_ser[0].luo_file_ser[0].compatible", { handlers: () => [] });
  });

  test("refuses files whose FLB was not handed over", () => {
    refuses(
      freeze(() => [new ToyHandler([])]),
      "luo_session_ser[0].luo_file_ser[0].compatible",
    );
  });

  test("names the file whose own data its handler refuses", () => {
    class Strict extends ToyHandler {
      override decode(_incoming: unknown, _data: bigint, field = ""): number {
        throw new HandoverError(field, "no");
      }
    }
    const handlers = () => [new Strict([], [new ToyFlb([])])];
    refuses(freeze(), 'session "a" token 0x1', { handlers });
  });

  test("refuses a subtree that is too small for a luo_ser", () => {
    const { rig, luo } = freeze();
    rig.kho.removeSubtree("LUO");
    rig.kho.addSubtree("LUO", luo, LUO_SER.sizeBytes - 1);
    const next = Rig.enter(rig.ram, rig.kho.bootParameters(), {});
    assert.throws(
      () => next.luo.decode(),
      (error: unknown) =>
        error instanceof HandoverError && error.field === 'subtree "LUO".blob-size',
    );
  });

  test("nothing was handed over: nothing is incoming", () => {
    const rig = Rig.cold();
    assert.equal(rig.luo.liveupdateNumber, 0);
    const next = rig.jump();
    assert.equal(next.luo.liveupdateNumber, 1);
    assert.equal(next.luo.counts().incomingSessions, 0);
  });
});
