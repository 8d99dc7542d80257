import assert from "node:assert/strict";
import { test } from "node:test";
import { isKernelError } from "../base/errno.ts";
import { probeCapabilities } from "./capabilities.ts";
import { LiveUpdateDevice } from "./live-update-device.ts";
import { FakeHost } from "./test-rig.ts";

function hostThat(preserves: readonly string[], hasIommu: boolean) {
  const fake = new FakeHost();
  fake.handlers.clear();
  for (const kind of preserves) fake.handlers.add(kind);
  fake.hasIommu = hasIommu;
  return { fake, device: LiveUpdateDevice.open(fake.host) };
}

test("probeCapabilities() says what the kernel preserves, and why not the rest", () => {
  const none = "the kernel fake-1 has no live update of";
  const noNode = /^\/dev\/iommu cannot be opened: ENOENT/;
  const cases: [
    preserves: string[],
    hasIommu: boolean,
    memory: true | RegExp,
    iommufd: true | RegExp,
  ][] = [
    [["memfd", "iommufd"], true, true, true],
    [["memfd"], true, true, new RegExp(`^${none} iommufds$`)],
    [["memfd"], false, true, noNode],
    [[], false, new RegExp(`^${none} memfds$`), noNode],
  ];
  for (const [preserves, hasIommu, memory, iommufd] of cases) {
    const { fake, device } = hostThat(preserves, hasIommu);
    const found = probeCapabilities(fake.host, device);
    const check = (capability: true | string, wanted: true | RegExp) => {
      if (wanted === true) assert.equal(capability, true);
      else assert.match(String(capability), wanted);
    };
    check(found.memory, memory);
    check(found.state, memory);
    check(found.iommufd, iommufd);
    check(found.device, iommufd === true ? true : /^it goes with its iommufd: /);
    assert.deepEqual([fake.outgoing.size, fake.openFiles], [0, 1], "nothing is left");
    assert.ok(!fake.calls.some((call) => call.includes("vfio")), "no device is opened");
  }
});

test("probeCapabilities() that fails at any call leaves nothing behind", () => {
  const whole = hostThat(["memfd", "iommufd"], true);
  const start = whole.fake.calls.length;
  probeCapabilities(whole.fake.host, whole.device);
  const calls = whole.fake.calls.slice(start);
  assert.deepEqual(calls, [
    ...["createSession", "memfdCreate", "ftruncate", "preserveFd"],
    ...["open /dev/iommu", "preserveFd"],
  ]);
  for (const [i, call] of calls.entries()) {
    const { fake, device } = hostThat(["memfd", "iommufd"], true);
    fake.fails = (_name, index) => (index === start + i ? "ENOMEM" : null);
    const probe = () => probeCapabilities(fake.host, device);
    if (i < 3) assert.throws(probe, (error) => isKernelError(error, "ENOMEM"), call);
    else assert.match(String(i === 3 ? probe().memory : probe().iommufd), /ENOMEM.*injected/, call);
    assert.deepEqual([fake.outgoing.size, fake.openFiles], [0, 1], call);
  }
});
