import assert from "node:assert/strict";
import { test } from "node:test";
import { isKernelError } from "../../base/errno.ts";
import { FakeHost } from "../test-rig.ts";
import { completeTarget } from "./default-target.ts";
import type { KernelTarget } from "./kernel-target.ts";
import { bzImage } from "./test-rig.ts";

/** The running release of the fake host. */
const RELEASE = "fake-1";

function complete(
  paths: readonly string[],
  given: Partial<KernelTarget> = {},
  commandLine = "quiet",
): KernelTarget {
  const fake = new FakeHost();
  fake.commandLine = commandLine;
  for (const path of paths) fake.images.set(path, bzImage());
  const target = completeTarget(fake.host, given);
  assert.equal(fake.openFiles, 0);
  return target;
}

const vmlinuz = `/boot/vmlinuz-${RELEASE}`;
const initrd = `/boot/initrd.img-${RELEASE}`;

test("completeTarget() finds the running kernel, its initrd and its command line", () => {
  const commandLine = "quiet liveupdate=on";
  assert.deepEqual(complete([vmlinuz, initrd], {}, commandLine), {
    kernel: vmlinuz,
    initrd,
    commandLine,
  });
  const module = `/lib/modules/${RELEASE}/vmlinuz`;
  assert.equal(complete([module], { initrd: null }).kernel, module);
  for (const other of [`/boot/initramfs-${RELEASE}.img`, `/boot/initrd-${RELEASE}`])
    assert.equal(complete([vmlinuz, other]).initrd, other);
});

test("completeTarget() goes by what the boot loader loaded where no path has the release in it", () => {
  for (const [loaded, path] of [
    ["/boot/vmlinuz-linux", "/boot/vmlinuz-linux"],
    ["/vmlinuz-linux", "/boot/vmlinuz-linux"],
    ["(hd0,gpt2)/vmlinuz-linux", "/boot/vmlinuz-linux"],
  ]) {
    const paths = [path, "/boot/initramfs-linux.img"];
    const target = complete(paths, {}, `BOOT_IMAGE=${loaded} quiet`);
    assert.deepEqual([target.kernel, target.initrd], paths);
  }
  const both = [vmlinuz, initrd, "/boot/vmlinuz-linux"];
  assert.equal(complete(both, {}, "BOOT_IMAGE=/vmlinuz-linux").kernel, vmlinuz);
});

test("completeTarget() keeps what is given, and looks for the initrd beside the kernel that is given", () => {
  const given = { kernel: "/boot/vmlinuz-9", initrd: "/boot/mine", commandLine: "mine" };
  assert.deepEqual(complete([], given), given);
  assert.equal(complete([], { ...given, initrd: null }).initrd, null);
  const beside = complete([initrd, "/boot/vmlinuz-9", "/boot/initrd.img-9"], {
    kernel: "/boot/vmlinuz-9",
  });
  assert.equal(beside.initrd, "/boot/initrd.img-9");
});

test("completeTarget() fails with ENOENT, naming where it looked, and never does without an initrd by itself", () => {
  const cases: [action: () => unknown, message: RegExp][] = [
    [
      () => complete([]),
      /running kernel's image is not found at \/boot\/vmlinuz-fake-1, .*name one$/,
    ],
    [() => complete([], {}, "BOOT_IMAGE=/other"), /at .*, \/other, \/boot\/other: name one$/],
    [
      () => complete([vmlinuz]),
      /initrd of .* is not found at \/boot\/initrd.img-fake-1, .*has none$/,
    ],
    [
      () => complete(["/boot/kernel"], { kernel: "/boot/kernel" }),
      /initrd of \/boot\/kernel is not found: name/,
    ],
  ];
  for (const [action, message] of cases)
    assert.throws(action, (error) => isKernelError(error, "ENOENT") && message.test(error.message));
});

test("completeTarget() finds the running kernel among images of ours, which have no initrd", () => {
  const fake = new FakeHost();
  const manifest = (release: string) =>
    JSON.stringify({ format: 1, name: release, release, restores: [] });
  fake.images.set("/boot/a", manifest("other-1"));
  fake.images.set("/boot/b", manifest(RELEASE));
  fake.images.set("/boot/aa-big", new Uint8Array(1_000_000));
  const start = fake.calls.length;
  assert.deepEqual(completeTarget(fake.host, {}), {
    kernel: "/boot/b",
    initrd: null,
    commandLine: "",
  });
  assert.ok(!fake.calls.slice(start).includes("open /boot/aa-big"));
});
