import assert from "node:assert/strict";
import { test } from "node:test";
import { Narrator, table } from "./render.ts";
import type { DemoResult } from "./result.ts";

test("Narrator tells an update in the order in which it happens", () => {
  const narrator = new Narrator();
  const phase = (name: string, ms: number) =>
    narrator.event({ event: "phase", update: 1, name, startNs: 0, endNs: ms * 1e6 });
  const lines = [
    ...narrator.event({ event: "boot", release: "r-1", update: 0, atNs: 5e6 }),
    ...narrator.event({ event: "ran", startNs: 0, endNs: 4e8, received: 2000, transmitted: 250 }),
    ...phase("preflight", 0.5),
    ...phase("pause", 12.345),
    ...narrator.jump(
      { requestedNs: 1e6, endedNs: 2e6, scribbledNs: 3e6, enteredNs: 4e6 },
      { received: 17, transmitted: 2 },
    ),
    ...narrator.event({ event: "boot", release: "r-2", update: 1, atNs: 30e6 }),
    ...narrator.event({
      event: "restored",
      update: 1,
      vm: "vm0",
      blackoutNs: 5e7,
      guestBytesCopied: 0,
    }),
    ...narrator.event({ event: "handover", update: 1, bytes: 78000, guestBytes: 2 ** 29 }),
    ...narrator.event({
      event: "failure",
      update: 1,
      vm: "vm1",
      phase: "swap",
      message: "EIO: no",
    }),
    ...narrator.event({ event: "leaks", leaks: { pages: 0, pins: 0, domains: 0 } }),
  ];
  assert.deepEqual(lines, [
    "boot r-1, cold",
    "  run          400.00 ms  the guests received 2000 frames and queued 250",
    "",
    "update 1",
    "  preflight      0.50 ms",
    "  pause         12.35 ms",
    "  jump           3.00 ms  no kernel; 17 frames came into guest memory, 2 were sent from it",
    // From the kernel's first instruction to its userspace.
    "  boot          26.00 ms  r-2",
    "  vm0           50.00 ms  blackout: it runs again",
    "  handover of 76.2 KiB beside 512 MiB of guest memory",
    "  FAILED vm1 swap: EIO: no",
  ]);
});

const RESULT: DemoResult = {
  place: "embedded",
  updates: 1,
  vms: [
    {
      name: "vm0",
      memoryBytes: 2 ** 28,
      blackoutMs: [51.34, 48],
      frames: { sent: 12345, received: 12344, lost: 1, corrupt: 0, duringJump: 20 },
      dmaFaults: 0,
      guestBytesCopied: 0,
    },
  ],
  handover: { bytes: 77824, guestBytes: 2 ** 28 },
  leaks: { pages: 1, pins: 2, domains: 3 },
  phases: [],
};

test("table() has a row for each VM under its columns, the leaks, and each problem", () => {
  const lines = table({
    result: RESULT,
    transmitted: [99],
    problems: ["vm0: 1 frames lost"],
    notes: ["vm0: seldom"],
  }).split("\n");
  assert.match(lines[0], /^vm +memory +sent to it +received +sent by it +lost +corrupt/);
  assert.match(lines[1], /^vm0 +256 MiB +12345 +12344 +99 +1 +0 +20 +0 +0 B +51\.3 48\.0$/);
  // Numbers end where their headings do.
  for (const heading of ["memory", "received", "lost"]) {
    const end = lines[0].indexOf(heading) + heading.length;
    assert.match(lines[1].slice(0, end), /\S$/, heading);
    assert.equal(lines[1][end], " ", heading);
  }
  assert.ok(lines.includes("leaked: 1 pages, 2 pins, 3 domains"));
  assert.deepEqual(lines.slice(-2), ["note: vm0: seldom", "PROBLEM: vm0: 1 frames lost"]);
});

test("table() says that nothing went wrong only when nothing did", () => {
  const said = /nothing lost, nothing corrupt, nothing copied, nothing leaked/;
  assert.match(table({ result: RESULT, transmitted: [99], problems: [], notes: [] }), said);
  assert.doesNotMatch(
    table({ result: RESULT, transmitted: [99], problems: ["x"], notes: [] }),
    said,
  );
});
