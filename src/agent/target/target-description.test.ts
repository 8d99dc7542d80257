import assert from "node:assert/strict";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { type ErrnoCode, isKernelError } from "../../base/errno.ts";
import { FakeHost } from "../test-rig.ts";
import type { KernelTarget, TargetDescription } from "./kernel-target.ts";
import { describeTarget } from "./target-description.ts";
import { bzImage, type ImageOptions, LIVE_UPDATE_CONFIG } from "./test-rig.ts";

const KERNEL = "/boot/vmlinuz-7.3.0";
const MANIFEST = {
  format: 1,
  name: "next",
  release: "next-1",
  restores: ["kho-v4", "luo-v5", "memfd-v2"],
};

/** What is found out about an image, on a host with these files. */
function describe(
  image: Uint8Array | string,
  target: Partial<KernelTarget> = {},
  files: Readonly<Record<string, string | Uint8Array>> = {},
): TargetDescription {
  const fake = new FakeHost();
  fake.images.set(KERNEL, image);
  for (const [path, content] of Object.entries(files)) fake.images.set(path, content);
  const whole = { kernel: KERNEL, initrd: null, commandLine: "quiet liveupdate=on", ...target };
  const description = describeTarget(fake.host, whole);
  assert.equal(fake.openFiles, 0);
  return description;
}

function fails(code: ErrnoCode, action: () => unknown, message: RegExp): void {
  assert.throws(action, (error) => isKernelError(error, code) && message.test(error.message));
}

/** The only problem that is found. */
function expectProblem(found: TargetDescription, problem: RegExp): void {
  assert.equal(found.problems.length, 1, found.problems.join("; "));
  assert.match(found.problems[0], problem);
}

test("describeTarget() reads our manifests", () => {
  const found = describe(JSON.stringify(MANIFEST));
  assert.deepEqual(found, {
    kernel: KERNEL,
    initrd: null,
    commandLine: "quiet liveupdate=on",
    kind: "holdfast",
    release: "next-1",
    restores: MANIFEST.restores,
    problems: [],
    unknowns: [],
  });
  expectProblem(describe(JSON.stringify(MANIFEST), { commandLine: "quiet" }), /add liveupdate=on/);
});

test("describeTarget() reads a bzImage: its release, and the formats that are in it", () => {
  const found = describe(bzImage({ release: "7.3.0-rc7" }));
  assert.deepEqual(
    [found.kind, found.release, found.restores, found.problems, found.unknowns],
    ["linux", "7.3.0-rc7", ["kho-v4", "luo-v5", "memfd-v2"], [], []],
  );
  const other = describe(bzImage({ compatibles: ["kho-v3", "vfio-pci-v1"] }));
  assert.deepEqual(other.restores, ["kho-v3", "vfio-pci-v1"]);
});

test("describeTarget() fails with EINVAL for what is no kernel image, ENOENT for nothing", () => {
  for (const manifest of [
    "",
    "no JSON",
    "null",
    "[]",
    ...[
      { format: 2 },
      { release: 1 },
      { name: null },
      { restores: "kho-v4" },
      { restores: [4] },
    ].map((change) => JSON.stringify({ ...MANIFEST, ...change })),
    new Uint8Array(100_000),
    "x".repeat(100_000),
  ])
    fails("EINVAL", () => describe(manifest), /vmlinuz-7.3.0 is neither an image of ours/);
  fails(
    "ENOENT",
    () => describeTarget(new FakeHost().host, { kernel: KERNEL, initrd: null, commandLine: "" }),
    /./,
  );
});

test("describeTarget() fails with EINVAL for a bzImage that is damaged, naming what is wrong", () => {
  const damaged = (change: (view: DataView, bytes: Uint8Array) => void) => {
    const bytes = bzImage();
    change(new DataView(bytes.buffer, bytes.byteOffset), bytes);
    return () => describe(bytes);
  };
  fails(
    "EINVAL",
    damaged((view) => view.setUint16(0x206, 0x207, true)),
    /boot protocol 0x207/,
  );
  for (const pointer of [0, 0xe00, 0xffff])
    fails(
      "EINVAL",
      damaged((view) => view.setUint16(0x20e, pointer, true)),
      /version string/,
    );
  fails(
    "EINVAL",
    damaged((_, bytes) => bytes.fill(0x41, 0xe00, 0xe80)),
    /release of 1 to 64/,
  );
  fails(
    "EINVAL",
    damaged((_, bytes) => bytes.fill(0x20, 0xe00, 0xe80)),
    /release of 1 to 64/,
  );
  for (const length of [0, 0xffff_ffff])
    fails(
      "EINVAL",
      damaged((view) => view.setUint32(0x24c, length, true)),
      /it is cut off/,
    );
  fails(
    "EINVAL",
    damaged((view) => view.setUint32(0x248, 0xffff_ff00, true)),
    /it is cut off/,
  );
  fails("EINVAL", () => describe(bzImage().subarray(0, 4300)), /it is cut off/);
});

test("describeTarget() survives a bzImage that is damaged anywhere", () => {
  const whole = bzImage();
  for (let at = 0; at < whole.length; at++) {
    // Past the header most is padding.
    if (at >= 0x268 && whole[at] === 0) continue;
    const bytes = Uint8Array.from(whole);
    bytes[at] ^= 0xff;
    try {
      describe(bytes);
    } catch (error) {
      if (!isKernelError(error, "EINVAL")) throw error;
    }
  }
});

test("describeTarget() refuses a target that would boot without live update", () => {
  const { length } = LIVE_UPDATE_CONFIG;
  const without = (option: string) =>
    LIVE_UPDATE_CONFIG.filter((line) => line !== `CONFIG_${option}=y`);
  const cases: [options: ImageOptions, commandLine: string, problem: RegExp | null][] = [
    [{}, "quiet", /does not turn live update on.*add liveupdate=on/],
    [{}, "liveupdate=off", /add liveupdate=on/],
    [{}, "liveupdate=on liveupdate=0", /add liveupdate=on/],
    [{}, "liveupdate", /add liveupdate=on/],
    [{}, "quiet -- liveupdate=on", /add liveupdate=on/],
    [{}, "liveupdate=0 liveupdate=1", null],
    [{}, "liveupdate=on kho=off", /take kho=off away/],
    [{ config: without("KEXEC_HANDOVER_ENABLE_DEFAULT") }, "liveupdate=on", /add kho=on/],
    [{ config: without("KEXEC_HANDOVER_ENABLE_DEFAULT") }, "liveupdate=on kho=y", null],
    [
      { config: without("LIVEUPDATE") },
      "liveupdate=on",
      /without CONFIG_LIVEUPDATE, says the image/,
    ],
    [{ config: without("LIVEUPDATE_MEMFD") }, "liveupdate=on", /without CONFIG_LIVEUPDATE_MEMFD/],
    [{ config: without("KEXEC_HANDOVER") }, "liveupdate=on", /without CONFIG_KEXEC_HANDOVER,/],
  ];
  assert.equal(length, 4);
  for (const [options, commandLine, problem] of cases) {
    const found = describe(bzImage(options), { commandLine });
    if (problem === null) assert.deepEqual(found.problems, [], commandLine);
    else expectProblem(found, problem);
  }
});

test("describeTarget() counts the command line that a kernel has built in", () => {
  const builtIn = (...lines: string[]) =>
    bzImage({ config: [...LIVE_UPDATE_CONFIG, "CONFIG_CMDLINE_BOOL=y", ...lines] });
  const on = 'CONFIG_CMDLINE="console=\\"ttyS0\\" liveupdate=on"';
  assert.deepEqual(describe(builtIn(on), { commandLine: "" }).problems, []);
  expectProblem(describe(builtIn(on), { commandLine: "liveupdate=off" }), /add liveupdate=on/);
  const override = "CONFIG_CMDLINE_OVERRIDE=y";
  assert.deepEqual(describe(builtIn(on, override), { commandLine: "liveupdate=off" }).problems, []);
  expectProblem(describe(builtIn('CONFIG_CMDLINE=""', override)), /add liveupdate=on/);
});

test("describeTarget() takes the configuration that lies beside a kernel without one in it", () => {
  const image = bzImage({ config: null });
  const config = `${LIVE_UPDATE_CONFIG.join("\n")}\n`;
  for (const path of ["/boot/config-7.3.0", "/lib/modules/7.3.0/config"]) {
    const found = describe(image, {}, { [path]: config });
    assert.deepEqual([found.problems, found.unknowns], [[], []]);
    expectProblem(
      describe(image, {}, { [path]: config.replace("CONFIG_LIVEUPDATE=y", "") }),
      new RegExp(`without CONFIG_LIVEUPDATE, says ${path}`),
    );
  }
  const bare = describe(image);
  assert.deepEqual(bare.problems, []);
  assert.match(bare.unknowns.join("; "), /^whether it takes a handover .*add kho=on/);
  assert.deepEqual(describe(image, { commandLine: "liveupdate=on kho=on" }).unknowns, []);
  // A release that would be a path leads nowhere.
  assert.equal(
    describe(bzImage({ config: null, release: "../x" }), {}, { "/boot/config-../x": config })
      .unknowns.length,
    1,
  );
});

test("describeTarget() says that it does not know what a kernel restores that it cannot unpack", () => {
  const config = { "/boot/config-7.3.0": LIVE_UPDATE_CONFIG.join("\n") };
  const cases: [payload: Uint8Array, why: RegExp][] = [
    [Buffer.from("no compression"), /unknown format/],
    [gzipSync("no kernel"), /no ELF file/],
    [gzipSync("\x7fELF").subarray(0, 20), /gzip payload cannot be unpacked/],
    [
      Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 1, 2, 3, 4, 5, 6, 7, 8]),
      /xz payload cannot/,
    ],
  ];
  for (const [payload, why] of cases) {
    const found = describe(bzImage({ payload }), {}, config);
    assert.equal(found.restores, null);
    assert.match(found.unknowns.join("; "), /^what it can restore cannot be told: /);
    assert.match(found.unknowns.join("; "), why);
  }
});

test("describeTarget() refuses an image without a signature where the running kernel wants one", () => {
  const secureBoot = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
  const on = Uint8Array.of(6, 0, 0, 0, 1);
  const policy = "CONFIG_IMA_SECURE_AND_OR_TRUSTED_BOOT=y";
  const config = "/proc/config.gz";
  const cases: [files: Record<string, string | Uint8Array>, demand: RegExp | null][] = [
    [
      { "/sys/kernel/security/lockdown": "none [integrity] confidentiality\n" },
      /locked down \(integrity\)/,
    ],
    [
      { "/sys/kernel/security/lockdown": "none integrity [confidentiality]\n" },
      /\(confidentiality\)/,
    ],
    [{ "/sys/kernel/security/lockdown": "[none] integrity confidentiality\n" }, null],
    [{ [config]: gzipSync("CONFIG_KEXEC_SIG_FORCE=y") }, /CONFIG_KEXEC_SIG_FORCE/],
    [{ "/boot/config-fake-1": "CONFIG_KEXEC_SIG_FORCE=y" }, /CONFIG_KEXEC_SIG_FORCE/],
    [{ [config]: gzipSync("CONFIG_KEXEC_SIG=y") }, null],
    [{ [secureBoot]: on }, /secure boot/],
    [{ [secureBoot]: on, [config]: gzipSync(policy) }, /secure boot/],
    [{ [secureBoot]: on, [config]: gzipSync("") }, null],
    [{ [secureBoot]: Uint8Array.of(6, 0, 0, 0, 0) }, null],
  ];
  for (const [files, demand] of cases) {
    const found = describe(bzImage(), {}, files);
    const when = Object.entries(files).join("; ");
    if (demand === null) assert.deepEqual(found.problems, [], when);
    else {
      expectProblem(found, /vmlinuz-7.3.0 is not signed, and the running kernel loads only/);
      assert.match(found.problems[0], demand);
    }
    assert.deepEqual(describe(bzImage({ isSigned: true }), {}, files).problems, [], when);
  }
});

test("describeTarget() refuses what the running kernel would not load", () => {
  expectProblem(
    describe(bzImage(), {}, { "/proc/sys/kernel/kexec_load_disabled": "1\n" }),
    /kexec_load_disabled is 1/,
  );
  assert.deepEqual(
    describe(bzImage(), {}, { "/proc/sys/kernel/kexec_load_disabled": "0\n" }).problems,
    [],
  );
  expectProblem(describe(bzImage(), { initrd: "/boot/none" }), /there is no initrd \/boot\/none/);
  assert.deepEqual(
    describe(bzImage(), { initrd: "/boot/some" }, { "/boot/some": "x" }).problems,
    [],
  );
  expectProblem(describe(bzImage({ commandLineBytesMax: 10 })), /has 19 bytes, over 10/);
  assert.deepEqual(describe(bzImage({ commandLineBytesMax: 19 })).problems, []);
});
