/**
 * Images with a field wrong, or bytes: the inspector always gets to an end, and finds something wrong whenever a kernel
 * refuses the handover, nothing when a kernel takes it.
 *
 * Why against the kernel: both use the same decoders, but the inspector goes on where a kernel stops, and has no
 * hardware. What only the hardware tells is listed here.
 * @module
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { it, describe as suite } from "node:test";
import { Agent } from "../../src/agent/agent.ts";
import { Prng } from "../../src/base/prng.ts";
import { MIB } from "../../src/base/units.ts";
import { describe } from "../../src/inspect/describe.ts";
import { diffHandovers } from "../../src/inspect/diff.ts";
import { type Handover, readHandover } from "../../src/inspect/handover.ts";
import { openImage } from "../../src/inspect/image/open-image.ts";
import { saveImage } from "../../src/inspect/image/save-image.ts";
import { deviceNames, reachDevice, reachPage } from "../../src/inspect/reach.ts";
import { renderHandover } from "../../src/inspect/render.ts";
import { PLAIN } from "../../src/inspect/text.ts";
import type { BootParameters } from "../../src/machine/machine.ts";
import type { Ram } from "../../src/machine/physical-memory.ts";
import { DamagedImage } from "../support/damaged-image.ts";
import { type Booted, FailureRig, IMAGE, TARGET } from "../support/failure-rig.ts";
import { handoverFields } from "../support/handover-map.ts";
import { HandoverProbe } from "../support/handover-probe.ts";
import { wrongValues } from "../support/wrong-values.ts";

/** One wrong value in so many is tried; all of them take minutes. */
const SAMPLE = 4;
const SEED = 5;
const LOOK_MS_MAX = 2_000;
const ARRAY_BYTES_MAX = 64 * MIB;

/** What a kernel says when the hardware is not as the handover has it: no image holds registers or config space. */
const OF_HARDWARE =
  /was left with 0x|the device's is |does not answer|is on no bus|is in no ECAM|do not match the device|in RTADDR|in firmware's table|is a bridge/;

suite("an image of a damaged handover", () => {
  it("is judged as a kernel judges it, and never ends an inspection", (t) => {
    const folder = mkdtempSync(join(tmpdir(), "holdfast-damaged-"));
    const path = join(folder, "image");
    const disagreed: string[] = [];
    /** How near to the wrong field the addresses of problems are: of it, in its page, elsewhere. */
    const nearness = { exact: 0, near: 0, far: 0 };
    let tried = 0;
    let wrong = 0;
    const rig = new FailureRig({ seed: SEED, vms: 1, memoryBytes: 8 * MIB, userspace });
    rig.machine.onJump((ram, { parameters }) => {
      assert.ok(parameters.kho !== null);
      saveImage(path, ram, { update: 1, kho: parameters.kho, firmware: rig.machine.firmware });
      const image = new DamagedImage(path);
      assert.deepEqual(look(path).problems.list, [], "the image is whole");
      tryFields(ram, parameters, image);
      trySeveral(ram, parameters, image);
      tryRandomBytes(ram, parameters, image);
      image.close();
      return parameters;
    });
    try {
      rig.run();
    } finally {
      rmSync(folder, { recursive: true });
    }
    t.diagnostic(`${tried} wrong values, ${wrong} of them refused by the kernel`);
    const { exact, near, far } = nearness;
    t.diagnostic(
      `address of a problem: ${exact} of the field, ${near} in its page, ${far} elsewhere`,
    );
    assert.ok(exact > far && exact + near > 4 * far, JSON.stringify(nearness));
    assert.deepEqual(disagreed, []);
    assert.ok(wrong > 300, `${wrong}`);

    function tryFields(ram: Ram, parameters: BootParameters, image: DamagedImage): void {
      assert.ok(parameters.kho !== null);
      const fields = handoverFields(ram, parameters.kho);
      const probe = new HandoverProbe(rig.machine, parameters, IMAGE);
      const kinds = new Set<string>();
      let number = 0;
      for (const field of fields) {
        const old = new Uint8Array(field.sizeBytes);
        ram.read(field.pa, old);
        for (const { label, bytes } of wrongValues(ram, field, fields)) {
          // The first value of each kind of field, and a sample of the others.
          const isFirst = !kinds.has(field.kind);
          kinds.add(field.kind);
          if (!isFirst && number++ % SAMPLE !== 0) continue;
          tried++;
          const what = `${field.name}: ${label}`;
          ram.write(field.pa, bytes);
          const kernel = probe.show(parameters);
          ram.write(field.pa, old);
          const found = image.with(field.pa, bytes, () => lookAtAll(path, what));
          assert.notEqual(kernel.kind, "broken", what);
          if (found.problems.length > 0) {
            const addresses = found.problems.map((p) => Number(p.address));
            const isExact = addresses.some(
              (pa) => pa >= field.pa && pa < field.pa + field.sizeBytes,
            );
            const isNear = addresses.some((pa) => Math.abs(pa - field.pa) < 4096);
            nearness[isExact ? "exact" : isNear ? "near" : "far"]++;
          }
          if (kernel.kind === "refused") wrong++;
          if (kernel.kind === "refused" && found.problems.length === 0) {
            if (!OF_HARDWARE.test(kernel.message))
              disagreed.push(`${what}: only the kernel says "${kernel.message}"`);
          } else if (kernel.kind === "accepted" && found.problems.length > 0)
            disagreed.push(`${what}: only the inspector says ${JSON.stringify(found.problems)}`);
        }
      }
    }

    /** Where a kernel names the first, all are named, each by the field's own address. */
    function trySeveral(ram: Ram, parameters: BootParameters, image: DamagedImage): void {
      assert.ok(parameters.kho !== null);
      const fields = handoverFields(ram, parameters.kho);
      const places = [
        "iommu_device_ser.reserved",
        "pci_function_ser.header_type",
        "luo_session.luo_file vfio_pci_ser.reserved",
        "luo_session.luo_file memfd_luo_ser.flags",
        "luo_session_ser.count",
        "memfs_inode.flags",
      ].map((kind) => {
        const field = fields.find((one) => one.kind === kind);
        assert.ok(field !== undefined, kind);
        return field.pa;
      });
      const damage = (rest: readonly number[]): readonly (string | null)[] =>
        rest.length === 0
          ? lookAtAll(path, "several fields").problems.map(({ address }) => address)
          : image.with(rest[0], Uint8Array.of(0xee), () => damage(rest.slice(1)));
      const found = damage(places);
      for (const pa of places) assert.ok(found.includes(`0x${pa.toString(16)}`), `${pa}: ${found}`);
    }

    function tryRandomBytes(ram: Ram, parameters: BootParameters, image: DamagedImage): void {
      assert.ok(parameters.kho !== null);
      const fields = handoverFields(ram, parameters.kho);
      const prng = new Prng(SEED);
      for (let round = 0; round < 60; round++) {
        const { pa, name } = fields[prng.below(fields.length)];
        const start = pa - (pa % 4096) + 64 * prng.below(60);
        const bytes = Uint8Array.from({ length: 1 + prng.below(200) }, () => prng.next() & 0xff);
        image.with(start, bytes, () =>
          lookAtAll(
            path,
            `seed ${SEED}, round ${round}: ${bytes.length} random bytes near ${name}`,
          ),
        );
      }
    }

    function userspace(booted: Booted): never {
      const { host } = booted;
      if (booted.boot === 0) {
        const agent = Agent.start(host, () => {});
        rig.mount(host);
        rig.makeFiles(host);
        return agent.update([rig.createVm(host, 0)], TARGET);
      }
      return rig.powerOff(booted);
    }
  });
});

function look(path: string): Handover {
  const image = openImage(path);
  try {
    return readHandover(image, { fdtPa: null });
  } finally {
    image.close();
  }
}

/** Everything that the commands do with an image, within bounds of time and memory. */
function lookAtAll(path: string, what: string) {
  const startMs = performance.now();
  const startBytes = process.memoryUsage().arrayBuffers;
  const image = openImage(path);
  try {
    const handover = readHandover(image, { fdtPa: null });
    const view = describe(handover);
    renderHandover(view, { style: PLAIN, isFull: true });
    JSON.stringify(view);
    for (const name of deviceNames(handover)) reachDevice(handover, name);
    reachPage(handover, handover.fdtPa ?? 0);
    assert.deepEqual(diffHandovers(handover, handover), [], what);
    for (const { field, problem } of view.problems)
      assert.ok(field !== "" && problem !== "", `${what}: a problem without a name`);
    return view;
  } catch (error) {
    throw new Error(`${what}: ${String(error)}`, { cause: error });
  } finally {
    image.close();
    const tookBytes = process.memoryUsage().arrayBuffers - startBytes;
    assert.ok(tookBytes < ARRAY_BYTES_MAX, `${what}: ${tookBytes} bytes`);
    assert.ok(performance.now() - startMs < LOOK_MS_MAX, `${what}: took too long`);
  }
}
