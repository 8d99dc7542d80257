import { test } from "node:test";
import { AGENT, holdfastIn, listening, testVm, vmEvent } from "./agent-host.ts";
import { LinuxMachine } from "./rig.ts";

test("x", async () => {
  let t0 = Date.now();
  const lap = (n: string) => {
    console.log(n, Date.now() - t0);
    t0 = Date.now();
  };
  const m = await LinuxMachine.start({
    services: [AGENT, testVm("vm0", "16M")],
    ramBytes: 1024 * 2 ** 20,
  });
  lap("boot");
  console.log(m.boot.uptime);
  try {
    await vmEvent(m.boot.services.get("vm0")!, "started");
    lap("started");
    const u = await m.spawn(holdfastIn("update", "--json"));
    await m.booted();
    lap("booted");
    console.log(m.boot.commandLine);
    const b = m.boot;
    await listening(b.services.get("agent")!);
    lap("listening");
    await vmEvent(b.services.get("vm0")!, "verified");
    lap("verified");
    const s = await m.run(holdfastIn("status", "--json"));
    lap("status");
    console.log(u.describe());
    console.log(s.stdout);
    console.log(b.services.get("agent")!.describe());
    console.log(b.services.get("vm0")!.describe());
    console.log(await m.readFile("/run/holdfast/clock"));
    console.log(
      m
        .console()
        .split("\n")
        .filter((l) => /Starting new|KHO|luo|Linux version|Run \/init|tsc/.test(l))
        .join("\n"),
    );
  } finally {
    m.close();
  }
});
