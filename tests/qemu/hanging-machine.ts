/**
 * A process that runs a QEMU machine until it is killed: for the test that nothing is left of either.
 *
 * Says QEMU's process id and the folder of its sockets.
 */
import { standardConfig } from "../../src/machine/embedded/config.ts";
import { QemuHardware } from "../../src/machine/qemu/qemu-hardware.ts";

const config = standardConfig({
  memoryBytes: 2 ** 26,
  nics: 1,
  framesPerSecond: 0,
  installed: [],
});
const { process: qemu } = await QemuHardware.powerOn(config, {});
process.stdout.write(`${qemu.pid} ${qemu.folder}\n`);
setInterval(() => {}, 1000);
