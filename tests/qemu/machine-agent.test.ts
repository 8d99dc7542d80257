import { test } from "node:test";
import { workMachineAgent } from "../support/machine-agent.ts";
import { skipReason } from "./rig.ts";

test("an agent in a machine on QEMU's hardware answers operators, and updates its kernel under its VMs", {
  skip: skipReason(),
}, async () => {
  await workMachineAgent("qemu");
});
