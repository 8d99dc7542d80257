import assert from "node:assert/strict";
import { test } from "node:test";
import { GIB } from "../base/units.ts";
import type { ManagedVm, Resource } from "../vmm/managed-vm.ts";
import type { Capabilities } from "./capabilities.ts";
import { type Degradation, type Findings, preflight } from "./preflight.ts";
import type { TargetDescription } from "./target/kernel-target.ts";

const RESTORES = [
  "kho-v4",
  "luo-v5",
  "memfd-v2",
  "memory-v1",
  "store-v1",
  "iommufd-v1",
  "device-v1",
];
const TARGET: TargetDescription = {
  kernel: "/boot/next",
  initrd: null,
  commandLine: "liveupdate=on",
  kind: "linux",
  release: "next-1",
  restores: RESTORES,
  problems: [],
  unknowns: [],
};
/** A kernel that preserves everything. */
const ALL: Capabilities = { memory: true, state: true, iommufd: true, device: true };
/** Linux 7.3. */
const MEMFDS: Capabilities = { ...ALL, iommufd: "it has none", device: "it goes with it" };

function resource(kind: Resource["kind"], changes: Partial<Resource> = {}): Resource {
  return {
    kind,
    label: `/dev/${kind}`,
    bytes: 0,
    compatibles: [`${kind}-v1`],
    blocker: null,
    essential: false,
    ...changes,
  };
}

function memory(changes: Partial<Resource> = {}): Resource {
  return resource("memory", {
    label: "/mnt/vm",
    bytes: GIB,
    compatibles: ["memory-v1", "store-v1"],
    essential: true,
    ...changes,
  });
}

const iommufd = resource("iommufd");
const device = resource("device");

/** A VM that preflight may only ask. */
function vm(name: string, ...resources: Resource[]): ManagedVm {
  return { name, resources: () => resources } as unknown as ManagedVm;
}

/** What is found out, but for these. */
function findings(vms: ManagedVm[], changes: Partial<Findings> = {}): Findings {
  return { target: TARGET, capabilities: ALL, vms, left: [], ...changes };
}

/** The reasons, one pattern each. */
function expectBlockers(
  what: string,
  found: Findings,
  patterns: readonly RegExp[],
  degradation?: Degradation,
): void {
  const { blockers } = preflight(found, degradation);
  assert.equal(blockers.length, patterns.length, `${what}: ${blockers.join("; ")}`);
  for (const [i, blocker] of blockers.entries()) assert.match(blocker, patterns[i], what);
}

test("preflight() says what an update would carry", () => {
  const vms = [vm("vm0", memory(), device), vm("vm1", memory({ bytes: 2 * GIB }))];
  const report = preflight(findings(vms));
  assert.deepEqual([report.blockers, report.warnings], [[], []]);
  assert.deepEqual([report.target, report.capabilities], [TARGET, ALL]);
  assert.equal(report.guestBytes, 3 * GIB);
  assert.deepEqual(
    report.vms.map(({ name, resources, leftBehind }) => [name, resources.length, leftBehind]),
    [
      ["vm0", 2, []],
      ["vm1", 1, []],
    ],
  );
});

test("preflight() names each thing that stands in the way", () => {
  const target = (changes: Partial<TargetDescription>) => ({ target: { ...TARGET, ...changes } });
  const cases: [what: string, found: Findings, blockers: RegExp[]][] = [
    [
      "a resource that cannot be preserved now",
      findings([vm("vm0", memory({ blocker: "it is mapped twice" }))]),
      [/^vm0: memory \/mnt\/vm: it is mapped twice$/],
    ],
    [
      "a format that the target cannot restore, once, by its first user",
      findings(
        [vm("vm0", memory()), vm("vm1", memory(), device)],
        target({ restores: ["kho-v4", "luo-v5", "memfd-v2", "device-v1"] }),
      ),
      [
        /^next-1 cannot restore "memory-v1", needed by vm0: memory \/mnt\/vm$/,
        /^next-1 cannot restore "store-v1", needed by vm0: memory \/mnt\/vm$/,
      ],
    ],
    [
      "a target without live update at all",
      findings([], target({ restores: [] })),
      [
        /cannot restore "kho-v4", needed by the handover/,
        /cannot restore "luo-v5"/,
        /cannot restore "memfd-v2", needed by the agent's journal/,
      ],
    ],
    [
      "what speaks against the target",
      findings([], target({ problems: ["it is blue"] })),
      [/^next-1: it is blue$/],
    ],
    [
      "what cannot be found out about the target",
      findings([vm("vm0", memory())], target({ restores: null, unknowns: ["it is locked"] })),
      [/^next-1: it is locked$/],
    ],
    ["two VMs of one name", findings([vm("a"), vm("b"), vm("a")]), [/^a: two VMs/]],
    ["the agent's own name", findings([vm("holdfast-agent")]), [/^holdfast-agent: .*agent/]],
    ["a name that no session can have", findings([vm("é".repeat(32))]), [/: a name has 1 to 63/]],
    ["no name", findings([vm("")]), [/: a name has 1 to 63/]],
    ["the longest name", findings([vm("n".repeat(63))]), []],
  ];
  for (const [what, found, blockers] of cases) expectBlockers(what, found, blockers);
});

test("preflight() lets what cannot be found out pass when it is told to, and warns", () => {
  const target = { ...TARGET, restores: null, unknowns: ["it is locked"] };
  const report = preflight(findings([vm("vm0", memory())], { target }), { allowUnknown: true });
  assert.deepEqual(report.blockers, []);
  assert.deepEqual(report.warnings, ["next-1: it is locked"]);
});

test("preflight() blocks what the kernel cannot preserve, with the way out, and lets it be left behind", () => {
  const vms = [vm("vm0", memory(), iommufd, device)];
  const found = findings(vms, { capabilities: MEMFDS });
  const iommufdBlocker =
    /^vm0: iommufd \/dev\/iommufd: .*: it has none; an update without "iommufd"/;
  const deviceBlocker =
    /^vm0: device \/dev\/device: .*: it goes with it; an update without "device"/;
  expectBlockers("with all", found, [iommufdBlocker, deviceBlocker]);
  expectBlockers("without iommufds", found, [deviceBlocker], { without: ["iommufd"] });
  expectBlockers("without both", found, [], { without: ["iommufd", "device"] });
  const report = preflight(found, { without: ["iommufd", "device"] });
  assert.deepEqual(report.vms[0].leftBehind, [iommufd, device]);
  assert.deepEqual(
    report.vms[0].resources.map(({ kind }) => kind),
    ["memory"],
  );
});

test("preflight() does not let go of what a VM cannot do without", () => {
  const essential = vm("vm0", memory(), resource("iommufd", { essential: true }));
  expectBlockers(
    "left behind",
    findings([essential]),
    [/^vm0: memory .*cannot be left behind$/, /^vm0: iommufd .*cannot be left behind$/],
    { without: ["memory", "iommufd"] },
  );
  expectBlockers("not preserved", findings([essential], { capabilities: MEMFDS }), [
    /^vm0: iommufd .*: it has none; the VM cannot go on without it and must be shut down first$/,
  ]);
});

test("preflight() does not carry a device without its iommufd", () => {
  const found = findings([vm("vm0", memory(), iommufd, device)]);
  expectBlockers("iommufd alone", found, [/^vm0: device .*must be without "device", too$/], {
    without: ["iommufd"],
  });
  expectBlockers("device alone", found, [], { without: ["device"] });
});

test("preflight() does not ask the target for formats of what is left behind", () => {
  const target = { ...TARGET, restores: RESTORES.filter((format) => format !== "device-v1") };
  const found = findings([vm("vm0", memory(), device)], { target });
  expectBlockers("with it", found, [/cannot restore "device-v1"/]);
  expectBlockers("without it", found, [], { without: ["device"] });
});
