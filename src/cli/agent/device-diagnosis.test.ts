import assert from "node:assert/strict";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { type ErrnoCode, KernelError } from "../../base/errno.ts";
import type { Host } from "../../host/host.ts";
import { explainDeviceError } from "./device-diagnosis.ts";

interface Kernel {
  /** Of /proc/config.gz; null: there is none, nor another. */
  readonly config: string | null;
  readonly commandLine: string;
}

const ALL = "CONFIG_KEXEC_HANDOVER=y\nCONFIG_LIVEUPDATE=y\n";

function host({ config, commandLine }: Kernel): Host {
  const packed = config === null ? null : gzipSync(config);
  let at = 0;
  const fake = {
    release: "6.19.1",
    commandLine,
    open: (path: string) => {
      if (path !== "/proc/config.gz" || packed === null)
        throw new KernelError("ENOENT", "open", path);
      at = 0;
      return 3;
    },
    fstat: () => ({ kind: "file" }),
    close: () => undefined,
    read: (_fd: number, target: Uint8Array) => {
      const piece = packed?.subarray(at, at + target.length) ?? new Uint8Array(0);
      target.set(piece);
      at += piece.length;
      return piece.length;
    },
  };
  return fake as unknown as Host;
}

function explain(code: ErrnoCode, kernel: Kernel = { config: ALL, commandLine: "" }): string {
  const error = new KernelError(code, "open", "/dev/liveupdate");
  const explained = explainDeviceError(host(kernel), error, () => [{ pid: 1, name: "systemd" }]);
  assert.equal(explained.code, code);
  return explained.message;
}

test("EBUSY names who has the device open, and says so when that is not to be seen", () => {
  assert.match(explain("EBUSY"), /^EBUSY: open: .* pid 1 \(systemd\) has it open: it must end/);
  const error = new KernelError("EBUSY", "open", "/dev/liveupdate");
  const unseen = explainDeviceError(host({ config: ALL, commandLine: "" }), error, () => []);
  assert.match(unseen.message, /whom this user cannot see: fuser as root tells who/);
});

test("EACCES asks for root", () => {
  assert.match(explain("EACCES"), /start the agent as root/);
});

test("ENOENT says what the kernel lacks: an option, a parameter, or why it cannot be told", () => {
  const cases: [kernel: Kernel, message: RegExp][] = [
    [{ config: "", commandLine: "" }, /6\.19\.1 is built without CONFIG_KEXEC_HANDOVER \(\/proc/],
    [
      { config: "CONFIG_KEXEC_HANDOVER=y\n", commandLine: "" },
      /without CONFIG_LIVEUPDATE .*boot one of 6\.19 or newer with it/,
    ],
    [{ config: ALL, commandLine: "quiet" }, /add liveupdate=on/],
    [{ config: ALL, commandLine: "liveupdate=on kho=off" }, /take kho=off away/],
    [{ config: ALL, commandLine: "liveupdate=on" }, /add kho=on/],
    [{ config: ALL, commandLine: "liveupdate=on kho=on" }, /dmesg/],
    [{ config: null, commandLine: "quiet" }, /add liveupdate=on/],
    [{ config: null, commandLine: "liveupdate=on kho=on" }, /does not tell its configuration/],
  ];
  for (const [kernel, message] of cases)
    assert.match(explain("ENOENT", kernel), message, JSON.stringify(kernel));
});

test("an error that says all by itself stays as it is", () => {
  for (const error of [
    new KernelError("EIO", "open", "/dev/liveupdate"),
    new KernelError("ENOENT", "open", "/run/holdfast"),
  ])
    assert.equal(explainDeviceError(host({ config: ALL, commandLine: "" }), error), error);
});
