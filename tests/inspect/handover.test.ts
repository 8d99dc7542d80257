/**
 * The inspector on images of real runs: it sees what was preserved, wherever it finds it, and agrees with the hardware.
 * @module
 */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, it, describe as suite } from "node:test";
import {
  F_ADD_SEALS,
  F_SEAL_GROW,
  F_SEAL_SHRINK,
  MFD_ALLOW_SEALING,
  O_RDWR,
  SEEK_SET,
} from "../../src/abi/uapi/fs.ts";
import { Agent } from "../../src/agent/agent.ts";
import { GIB, MIB, PAGE_SIZE } from "../../src/base/units.ts";
import { runDemo } from "../../src/cli/demo/machines.ts";
import { diff } from "../../src/cli/diff.ts";
import { inspect } from "../../src/cli/inspect.ts";
import { reach } from "../../src/cli/reach.ts";
import { UsageError } from "../../src/cli/usage-error.ts";
import { verify } from "../../src/cli/verify.ts";
import { createSession, preserveFd } from "../../src/host/liveupdate.ts";
import { describe, type HandoverView } from "../../src/inspect/describe.ts";
import { diffHandovers } from "../../src/inspect/diff.ts";
import { extract, findFiles } from "../../src/inspect/extract.ts";
import { type Handover, readHandover } from "../../src/inspect/handover.ts";
import { openImage } from "../../src/inspect/image/open-image.ts";
import { saveImage } from "../../src/inspect/image/save-image.ts";
import { deviceNames, reachDevice, reachPage } from "../../src/inspect/reach.ts";
import { type Booted, FailureRig, TARGET } from "../support/failure-rig.ts";
import { saveFragmentedImage } from "../support/fragmented-image.ts";
import { saveRawImage } from "../support/raw-image.ts";
import { jumpOnce } from "../support/session-host.ts";

const VM_BYTES = 8 * MIB;
const VERSION = "9.8.7";

const folder = mkdtempSync(join(tmpdir(), "holdfast-inspect-"));
after(() => rmSync(folder, { recursive: true }));
const file = (name: string) => join(folder, name);

function look<T>(path: string, use: (handover: Handover) => T): T {
  const image = openImage(path);
  try {
    return use(readHandover(image, { fdtPa: null }));
  } finally {
    image.close();
  }
}

/** What a command prints on standard output, and its exit status. */
async function command(
  one: { run(args: readonly string[]): Promise<number> },
  ...args: string[]
): Promise<{ status: number; out: string; err: string }> {
  const { log, error } = console;
  const lines: Record<"out" | "err", string[]> = { out: [], err: [] };
  console.log = (line: string) => void lines.out.push(line);
  console.error = (line: string) => void lines.err.push(line);
  try {
    const status = await one.run(args);
    return { status, out: lines.out.join("\n"), err: lines.err.join("\n") };
  } finally {
    console.log = log;
    console.error = error;
  }
}

suite("images of the demo", () => {
  const first = file("demo-1");
  const second = file("demo-2");

  before(async () => {
    const watcher = { event: () => {}, log: () => {}, jump: () => {} };
    await runDemo(
      {
        updates: 2,
        vms: 2,
        memoryBytes: VM_BYTES,
        framesPerSecond: 5000,
        seed: 3,
        saveImage: file("demo-%u"),
      },
      VERSION,
      watcher,
      new AbortController().signal,
    );
  });

  it("show sessions, files, memory, domains and functions, and nothing wrong", () => {
    const view = look(first, describe);
    assert.deepEqual(view.problems, []);
    assert.deepEqual(view.notes, []);
    assert.equal(view.image.update, 1);
    assert.deepEqual(view.kexec, { previousRelease: `${VERSION}-1`, count: 1 });
    assert.deepEqual(view.fdt.subtrees.map(({ name }) => name).sort(), [
      "LUO",
      "kexec-metadata",
      "memfs",
    ]);
    assert.equal(view.preserved?.unclaimedBytes, 0);
    assert.ok((view.preserved?.bytes ?? 0) > 2 * VM_BYTES);
    assert.deepEqual(
      view.memfs?.map(({ name, entries }) => [
        name,
        entries.map((e) => [e.path, e.kind, e.sizeBytes, e.allocatedBytes]),
      ]),
      [
        [
          "guests",
          [
            ["/vm0", "file", VM_BYTES, VM_BYTES],
            ["/vm1", "file", VM_BYTES, VM_BYTES],
          ],
        ],
      ],
    );
    const sessions = view.liveUpdate?.sessions ?? [];
    assert.deepEqual(
      sessions.map((s) => [s.name, s.files.map(({ content }) => content.kind)]),
      [
        ["holdfast-agent", ["memfd"]],
        ["vm0", ["memfs", "memfd", "iommufd", "vfio"]],
        ["vm1", ["memfs", "memfd", "iommufd", "vfio"]],
      ],
    );
    assert.deepEqual(
      view.iommu?.devices.map((d) => d.function),
      ["0000:00:01.0", "0000:01:00.0", "0000:02:00.0"],
    );
    const paging = view.iommu?.domains.filter(({ kind }) => kind === "paging") ?? [];
    assert.deepEqual(
      paging.map(({ mappedBytes }) => mappedBytes),
      [VM_BYTES, VM_BYTES],
    );
    assert.equal(view.pci?.filter(({ preservedBy }) => preservedBy > 0).length, 4);
  });

  it("differ from jump to jump in what the second kernel did, and in nothing else", () => {
    const differences = look(first, (a) => look(second, (b) => diffHandovers(a, b)));
    const seen = differences.map(({ kind, name, change }) => `${kind} ${name} ${change}`);
    assert.deepEqual(
      seen.filter((text) => !/^(file|preserved) /.test(text)),
      ["kexec kernel changed"],
      "VMs, devices and their translations are as before",
    );
    assert.ok(!seen.some((text) => text.includes('"vm0" token 0x1 ')), "its memory has not moved");
    assert.deepEqual(
      look(first, (a) => diffHandovers(a, a)),
      [],
    );
  });

  it("are answered by every command with its exit status", async () => {
    const whole = await command(verify, first);
    assert.equal(whole.status, 0);
    assert.match(whole.out, /^whole: .* 3 sessions with 9 files/);
    const json = await command(verify, first, "--json");
    const seen = JSON.parse(json.out) as { ok: boolean; seen: { files: number } };
    assert.deepEqual([seen.ok, seen.seen.files], [true, 9]);

    const shown = await command(inspect, first);
    assert.equal(shown.status, 0);
    assert.ok(shown.out.split("\n").every((line) => line.length <= 100));
    assert.match(shown.out, /session "vm1": 4 files/);
    const view = JSON.parse((await command(inspect, first, "--json")).out) as HandoverView;
    assert.deepEqual(view, JSON.parse(JSON.stringify(look(first, describe))));
    // The wrong place is told from the right one.
    assert.equal((await command(inspect, first, "--fdt", "0x0")).status, 1);

    assert.equal((await command(diff, first, second)).status, 1);
    const same = await command(diff, first, first);
    assert.deepEqual([same.status, same.out], [0, "nothing differs"]);
    const differing = await command(diff, first, second, "--json");
    assert.ok((JSON.parse(differing.out) as { differences: [] }).differences.length > 0);

    const device = await command(reach, first, "--device", "0000:01:00.0");
    assert.match(device.out, /reaches 8 MiB, session "vm0"\n {2}iova 0x0 → 0x/);
    assert.equal(device.status, 0);
    const blocked = await command(reach, first, "--device", "0000:00:05.0");
    assert.match(blocked.out, /is blocked/);
    const nobody = await command(reach, first, "--page", "0x1000");
    assert.match(nobody.out, /page 0x1000: no device reaches it/);
    assert.equal((await command(reach, first, "--page", "0xfee00000")).status, 1);

    const missing = await command(verify, file("none"));
    assert.equal(missing.status, 1);
    assert.match(missing.err, /ENOENT/);
  });

  it("are not looked at when the command line is wrong", async () => {
    const wrong: readonly [Parameters<typeof command>[0], ...string[]][] = [
      [inspect],
      [inspect, first, second],
      [inspect, first, "--fdt", "here"],
      [inspect, first, "--extract", "0x1"],
      [inspect, first, "--extract", "one", "target"],
      [inspect, first, "--session", "vm0"],
      [inspect, first, "--below-4g", "5G"],
      [inspect, first, "--no-such"],
      [verify, first, second],
      [diff, first],
      [diff, first, second, "--fdt", "1,2,3"],
      [reach, first],
      [reach, first, "--page", "1", "--device", "0000:00:01.0"],
      [reach, first, "--device", "1:0.0"],
    ];
    for (const [one, ...args] of wrong)
      await assert.rejects(command(one, ...args), UsageError, args.join(" "));
  });
});

suite("a handover of two VMs", () => {
  it("is found by search in a raw image, and is the same as by the note", () => {
    const views = new Map<string, HandoverView>();
    let mapped = 0;
    const rig = new FailureRig({ seed: 11, vms: 2, memoryBytes: VM_BYTES, userspace });
    rig.machine.onJump((ram, { parameters }) => {
      const { kho } = parameters;
      assert.ok(kho !== null);
      const { firmware } = rig.machine;
      saveImage(file("noted"), ram, { update: 1, kho, firmware });
      saveRawImage(file("raw"), ram);
      for (const name of ["noted", "raw"]) views.set(name, look(file(name), describe));
      look(file("noted"), checkReach);
      return parameters;
    });
    rig.run();
    const noted = views.get("noted");
    const raw = views.get("raw");
    assert.ok(noted !== undefined && raw !== undefined && mapped > 0);
    assert.equal(noted.fdt.foundBy, "note");
    assert.equal(raw.fdt.foundBy, "search");
    assert.equal(raw.fdt.address, noted.fdt.address);
    // What a raw file does not say: where scratch is, which node memory is of.
    assert.equal(raw.scratch, null);
    assert.equal(raw.preserved?.nodes, null);
    for (const key of ["kexec", "memfs", "liveUpdate", "iommu", "pci", "problems"] as const)
      assert.deepEqual(raw[key], noted[key], key);

    /** Every page of RAM: what the inspector says of it is what the remapping unit does. */
    function checkReach(handover: Handover): void {
      const unit = rig.machine.hardware.vtds[0];
      assert.ok(unit !== null && handover.preserved !== null);
      const sourceIds = new Map(
        (handover.iommu?.devices ?? []).map((d) => [
          `0000:${(d.bdf >> 8).toString(16).padStart(2, "0")}:${((d.bdf >> 3) & 31).toString(16).padStart(2, "0")}.${d.bdf & 7}`,
          d.bdf,
        ]),
      );
      assert.deepEqual([...sourceIds.keys()].sort(), deviceNames(handover));
      for (const name of deviceNames(handover)) {
        const sourceId = sourceIds.get(name) ?? 0;
        const { ranges } = reachDevice(handover, name);
        const inRanges = (iova: number) =>
          ranges.find((r) => iova >= Number(r.iova) && iova < Number(r.iova) + r.lengthBytes);
        for (let iova = 0; iova < 2 * VM_BYTES; iova += PAGE_SIZE) {
          const pa: number = unit.translate(sourceId, iova, true);
          const range = inRanges(iova);
          const expected = range === undefined ? -1 : Number(range.pa) + iova - Number(range.iova);
          assert.equal(pa < 0 ? -1 : pa, expected, `${name} iova ${iova.toString(16)}`);
          if (pa < 0) continue;
          mapped++;
          if (mapped % 64 !== 0) continue;
          const back = reachPage(handover, pa).reachedBy;
          assert.ok(
            back.some((r) => r.function === name && Number(r.iova) === iova && r.canWrite),
            `${name} reaches ${pa.toString(16)}`,
          );
        }
      }
    }

    function userspace(booted: Booted): never {
      const { host } = booted;
      if (booted.boot > 0) return rig.powerOff(booted);
      const agent = Agent.start(host, () => {});
      rig.mount(host);
      return agent.update([rig.createVm(host, 0), rig.createVm(host, 1)], TARGET);
    }
  });
});

suite("--extract", () => {
  /** Bytes that are their own check. */
  const content = (seed: number, length: number) =>
    Uint8Array.from({ length }, (_, i) => ((i * 31) ^ (i >> 8) ^ seed) & 0xff);

  it("gives back what was written: memfds sparse, sealed and odd, in sessions that share tokens", async () => {
    const path = file("memfds");
    const small = content(1, 5000);
    const end = content(2, 4096 + 77);
    const SPARSE_BYTES = 6 * MIB + 77;
    jumpOnce(
      64 * MIB,
      (host) => {
        const device = host.open("/dev/liveupdate", O_RDWR);
        const one = createSession(host, device, "one");
        const two = createSession(host, device, "two");
        const a = host.memfdCreate("a", MFD_ALLOW_SEALING);
        host.write(a, small);
        host.fcntl(a, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK);
        host.lseek(a, 4321, SEEK_SET);
        preserveFd(host, one, a, 7n);
        const b = host.memfdCreate("b", 0);
        host.ftruncate(b, SPARSE_BYTES);
        host.pwrite(b, end, SPARSE_BYTES - end.length);
        preserveFd(host, two, b, 7n);
        preserveFd(host, two, host.memfdCreate("empty", 0), (1n << 64n) - 1n);
      },
      (machine, { parameters }) => {
        const { ram, firmware } = machine;
        assert.ok(parameters.kho !== null);
        saveImage(path, ram, { update: 1, kho: parameters.kho, firmware });
      },
    );
    const files = look(path, describe).liveUpdate?.sessions.flatMap((s) => s.files) ?? [];
    const known = files.map(({ token, content: c }) => {
      assert.ok(c.kind === "memfd");
      return [token, c.sizeBytes, c.position, c.seals];
    });
    assert.deepEqual(known, [
      ["0x7", 5000, 4321, ["SHRINK", "GROW"]],
      ["0x7", SPARSE_BYTES, 0, ["SEAL"]],
      ["0xffffffffffffffff", 0, 0, ["SEAL"]],
    ]);

    const target = file("extracted");
    const both = await command(inspect, path, "--extract", "7", target);
    assert.equal(both.status, 1);
    assert.match(both.err, /in sessions "one", "two"/);
    const run = (session: string) =>
      command(inspect, "--extract", "0x7", target, path, "--session", session);
    assert.equal((await run("one")).status, 0);
    assert.deepEqual(readFileSync(target), Buffer.from(small));
    assert.equal((await run("two")).status, 0);
    const bytes = readFileSync(target);
    assert.equal(bytes.length, SPARSE_BYTES);
    assert.deepEqual(bytes.subarray(SPARSE_BYTES - end.length), Buffer.from(end));
    assert.ok(bytes.subarray(0, SPARSE_BYTES - end.length).every((byte) => byte === 0));
    assert.ok(512 * statSync(target).blocks < MIB, "holes are holes");
    assert.equal((await command(inspect, path, "--extract", "8", target)).status, 1);
    look(path, (handover) => {
      const [{ content: empty }] = findFiles(handover, (1n << 64n) - 1n, null);
      assert.equal(extract(handover, empty, target), 0);
      assert.equal(statSync(target).size, 0);
    });
  });
});

suite("an image of 1 GiB with 10,000 preserved extents", () => {
  it("is inspected in seconds, in memory that does not depend on its size", (t) => {
    const path = file("fragmented");
    saveFragmentedImage(path, 10_000);
    assert.equal(statSync(path).size, GIB);
    const startMs = performance.now();
    const startBytes = process.memoryUsage().arrayBuffers;
    const view = look(path, describe);
    const tookMs = performance.now() - startMs;
    const tookBytes = process.memoryUsage().arrayBuffers - startBytes;
    t.diagnostic(`${Math.round(tookMs)} ms, ${Math.round(tookBytes / MIB)} MiB of buffers`);
    assert.deepEqual(view.problems, []);
    const extents = view.memfs?.[0].entries.reduce((sum, e) => sum + e.extents, 0);
    assert.equal(extents, 10_000);
    // The promise is 2 s on two cores (npm run bench); a busy machine gets more.
    assert.ok(tookMs < 10_000, `${tookMs} ms`);
    assert.ok(tookBytes < 64 * MIB, `${tookBytes} bytes`);
  });
});
