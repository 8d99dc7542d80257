import { test } from "node:test";
import { workMachineAgent } from "../support/machine-agent.ts";

test("an agent in an embedded machine answers operators, and updates its kernel under its VMs", async () => {
  await workMachineAgent("embedded");
});
