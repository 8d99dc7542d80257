/**
 * A process whose machine never ends by itself, for the test that it ends by a signal.
 *
 * Its argument is a machine's description as JSON; the image is the first one installed.
 * @module
 */
import type { MachineConfig } from "../embedded/config.ts";
import { LiveMachine } from "./live-machine.ts";

const config = JSON.parse(process.argv[2]) as MachineConfig;
const machine = new LiveMachine(config, { onSerialLine: (line) => process.stdout.write(line) });
await machine.run(config.installed[0], "then=hang");
