/**
 * The demo's host in threads: kernels that really end, and NICs that really go on.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { MIB } from "../../src/base/units.ts";
import type { DemoEvent } from "../../src/cli/demo/events.ts";
import { runDemo } from "../../src/cli/demo/machines.ts";
import { judge } from "../../src/cli/demo/result.ts";

const FRAMES_PER_SECOND = 3000;

test("two VMs lose nothing in two updates of a live machine, and DMA goes on while no kernel exists", async () => {
  const updates = 2;
  const events: DemoEvent[] = [];
  const logged: string[] = [];
  const run = await runDemo(
    // The ring is large and the rate low: loading a kernel's code stops the guests for long where it is not compiled.
    { updates, vms: 2, memoryBytes: 128 * MIB, framesPerSecond: FRAMES_PER_SECOND, seed: null },
    "test",
    {
      event: (event) => events.push(event),
      log: (line) => logged.push(line),
      jump: () => undefined,
    },
    new AbortController().signal,
  );
  const { result, problems } = judge({
    place: "embedded",
    requested: { updates, vms: 2, framesPerSecond: FRAMES_PER_SECOND },
    events,
    ...run,
  });
  assert.deepEqual(problems, [], logged.join("\n"));
  assert.equal(result.vms.length, 2);
  assert.deepEqual(result.leaks, { pages: 0, pins: 0, domains: 0 });
  for (const vm of result.vms) {
    assert.ok(vm.frames.duringJump > 0, `${vm.name}: ${vm.frames.duringJump} frames in jumps`);
    assert.equal(vm.frames.received, vm.frames.sent, vm.name);
    assert.equal(vm.guestBytesCopied, 0, vm.name);
    assert.equal(vm.blackoutMs.length, updates, vm.name);
  }
});
