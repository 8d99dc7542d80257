/**
 * Accesses of any length and alignment to registers, as bus transactions of 4, 2 or 1 aligned bytes.
 *
 * Differs from Linux, which uses one 8-byte transaction where it can: our bus has none, so the lower half goes
 * first.
 * Source: Linux 7.3 drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_core_do_io_rw()
 * @module
 */

export interface Registers {
  read(offset: number, size: 1 | 2 | 4): number;
  write(offset: number, size: 1 | 2 | 4, value: number): void;
}

function sizeAt(offset: number, rest: number): 1 | 2 | 4 {
  if (rest >= 4 && offset % 4 === 0) return 4;
  return rest >= 2 && offset % 2 === 0 ? 2 : 1;
}

/** Reads `target.length` bytes from `offset` on. */
export function readRegisters(registers: Registers, offset: number, target: Uint8Array): void {
  for (let done = 0; done < target.length; ) {
    const size = sizeAt(offset + done, target.length - done);
    const value = registers.read(offset + done, size);
    for (let i = 0; i < size; i++) target[done + i] = value >>> (8 * i);
    done += size;
  }
}

/** Writes all of `bytes` from `offset` on. */
export function writeRegisters(registers: Registers, offset: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) {
    const size = sizeAt(offset + done, bytes.length - done);
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = value * 256 + bytes[done + i];
    registers.write(offset + done, size, value);
    done += size;
  }
}
