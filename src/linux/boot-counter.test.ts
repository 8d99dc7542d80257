import assert from "node:assert/strict";
import { test } from "node:test";
import { skipUnless } from "../../tests/support/skip.ts";
import { bootCounters, isTscTrusted } from "./boot-counter.ts";
import { ContinuousClock } from "./continuous-clock.ts";
import { linuxTests } from "./test-rig.ts";

const linux = process.platform === "linux" ? null : `needs Linux, not ${process.platform}`;
const linuxTest = linuxTests(skipUnless("counters of Linux", linux));

test("the TSC is trusted where Linux keeps time by it, or the processor promises a constant one", () => {
  const flags = ["fpu", "constant_tsc", "nonstop_tsc"];
  assert.ok(isTscTrusted({ available: ["tsc", "hpet"], current: "tsc", flags: ["fpu"] }));
  assert.ok(isTscTrusted({ available: ["kvm-clock", "tsc"], current: "kvm-clock", flags }));
  // Found unstable, it is not available; without sysfs nothing is known.
  assert.ok(!isTscTrusted({ available: ["hpet"], current: "hpet", flags }));
  assert.ok(!isTscTrusted({ available: [""], current: "", flags }));
  for (const left of flags.slice(1))
    assert.ok(
      !isTscTrusted({ available: ["kvm-clock", "tsc"], current: "kvm-clock", flags: [left] }),
    );
});

linuxTest(
  "every counter of this machine counts on, and the clock's rate is its own",
  ({ ffi, folder }) => {
    const counters = bootCounters(ffi);
    assert.equal(counters.at(-1)?.name, "realtime");
    assert.ok(Math.abs(counters[counters.length - 1].read() / 1e6 - Date.now()) < 1000);
    for (const counter of counters) {
      const clock = new ContinuousClock({
        counters: [counter],
        monotonicNs: () => Number(process.hrtime.bigint()),
        sleep: (ns) => ffi.poll(new Uint8Array(0), ns),
        folder: `${folder}/${counter.name}`,
        commandLine: "",
        bootId: "x",
      });
      const [, count, clockNs, hz] = clock.parameter().split("=")[1].split(":").map(Number);
      // What the next process makes of it must be what the clock reads by then.
      ffi.poll(new Uint8Array(0), 100e6);
      const then = counter.read();
      const errorNs = clockNs + ((then - count) / hz) * 1e9 - clock.nowNs();
      assert.ok(Math.abs(errorNs) < 2e6, `${counter.name} is ${errorNs} ns off after 100 ms`);
    }
  },
);
