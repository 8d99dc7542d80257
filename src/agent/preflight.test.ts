import assert from "node:assert/strict";
import { test } from "node:test";
import { isKernelError } from "../base/errno.ts";
import { GIB } from "../base/units.ts";
import type { ManagedVm, Resource } from "../vmm/managed-vm.ts";
import { preflight } from "./preflight.ts";
import { FakeHost } from "./test-rig.ts";

const IMAGE = "/boot/next";
const MANIFEST = {
  format: 1,
  name: "next",
  release: "next-1",
  restores: ["kho-v4", "luo-v5", "memfd-v2", "memory-v1", "store-v1", "device-v1"],
};

function hostWith(manifest: unknown): FakeHost {
  const fake = new FakeHost();
  fake.images.set(IMAGE, typeof manifest === "string" ? manifest : JSON.stringify(manifest));
  return fake;
}

function memory(changes: Partial<Resource> = {}): Resource {
  const { kind, label } = { kind: "memory", label: "/mnt/vm" } as const;
  return {
    kind,
    label,
    bytes: GIB,
    compatibles: ["memory-v1", "store-v1"],
    blocker: null,
    essential: true,
    ...changes,
  };
}

const device: Resource = {
  kind: "device",
  label: "/dev/vfio0",
  bytes: 0,
  compatibles: ["device-v1"],
  blocker: null,
  essential: false,
};

/** A VM that preflight may only ask. */
function vm(name: string, ...resources: Resource[]): ManagedVm {
  return { name, resources: () => resources } as unknown as ManagedVm;
}

test("preflight() says what an update would carry, and changes nothing", () => {
  const fake = hostWith(MANIFEST);
  const vms = [vm("vm0", memory(), device), vm("vm1", memory({ bytes: 2 * GIB }))];
  const report = preflight(fake.host, vms, IMAGE);
  assert.deepEqual(report.blockers, []);
  assert.deepEqual(report.image, MANIFEST);
  assert.equal(report.guestBytes, 3 * GIB);
  assert.deepEqual(
    report.vms.map(({ name, resources }) => [name, resources.length]),
    [
      ["vm0", 2],
      ["vm1", 1],
    ],
  );
  assert.deepEqual(fake.calls, [`open ${IMAGE}`]);
  assert.equal(fake.openFiles, 0);
});

test("preflight() names each thing that stands in the way", () => {
  const cases: [what: string, vms: ManagedVm[], restores: readonly string[], blockers: RegExp[]][] =
    [
      [
        "a resource that cannot be preserved now",
        [vm("vm0", memory({ blocker: "it is mapped twice" }))],
        MANIFEST.restores,
        [/^vm0: memory \/mnt\/vm: it is mapped twice$/],
      ],
      [
        "a format that the target cannot restore, once, by its first user",
        [vm("vm0", memory()), vm("vm1", memory(), device)],
        ["kho-v4", "luo-v5", "memfd-v2", "device-v1"],
        [
          /^next-1 cannot restore "memory-v1", needed by vm0: memory \/mnt\/vm$/,
          /^next-1 cannot restore "store-v1", needed by vm0: memory \/mnt\/vm$/,
        ],
      ],
      [
        "a target without live update at all",
        [],
        [],
        [
          /cannot restore "kho-v4", needed by the handover/,
          /cannot restore "luo-v5"/,
          /cannot restore "memfd-v2", needed by the agent's journal/,
        ],
      ],
      ["two VMs of one name", [vm("a"), vm("b"), vm("a")], MANIFEST.restores, [/^a: two VMs/]],
      [
        "the agent's own name",
        [vm("holdfast-agent")],
        MANIFEST.restores,
        [/^holdfast-agent: .*agent/],
      ],
      [
        "a name that no session can have",
        [vm("é".repeat(32))],
        MANIFEST.restores,
        [/: a name has 1 to 63/],
      ],
      ["no name", [vm("")], MANIFEST.restores, [/: a name has 1 to 63/]],
    ];
  for (const [what, vms, restores, blockers] of cases) {
    const found = preflight(hostWith({ ...MANIFEST, restores }).host, vms, IMAGE).blockers;
    assert.equal(found.length, blockers.length, `${what}: ${found.join("; ")}`);
    for (const [i, blocker] of blockers.entries()) assert.match(found[i], blocker, what);
  }
  assert.deepEqual(preflight(hostWith(MANIFEST).host, [vm("n".repeat(63))], IMAGE).blockers, []);
});

test("preflight() fails with EINVAL when the image's manifest is not one", () => {
  for (const manifest of [
    "",
    "no JSON",
    "null",
    "[]",
    { ...MANIFEST, format: 2 },
    { ...MANIFEST, release: 1 },
    { ...MANIFEST, name: undefined },
    { ...MANIFEST, restores: "kho-v4" },
    { ...MANIFEST, restores: ["kho-v4", 4] },
  ]) {
    const fake = hostWith(manifest);
    assert.throws(
      () => preflight(fake.host, [], IMAGE),
      (error) => isKernelError(error, "EINVAL") && error.message.includes(IMAGE),
      JSON.stringify(manifest),
    );
    assert.equal(fake.openFiles, 0);
  }
});

test("preflight() fails with ENOENT when there is no such image", () => {
  assert.throws(
    () => preflight(hostWith(MANIFEST).host, [], "/boot/other"),
    (error) => isKernelError(error, "ENOENT"),
  );
});
