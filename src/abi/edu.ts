/**
 * Registers of QEMU's educational PCI device `edu`, in its BAR 0 of 1 MiB.
 *
 * Each is 32 bits wide; the four of DMA are 64 bits wide but set whole, zero-extended, by a 32-bit write.
 * Source: QEMU docs/specs/edu.rst, hw/misc/edu.c
 * @module
 */

export const EDU_VENDOR_ID = 0x1234;
export const EDU_DEVICE_ID = 0x11e8;
export const EDU_BAR_BYTES = 2 ** 20;

/** RO: {@link EDU_ID_VALUE}. */
export const EDU_ID = 0x00;
/** Major version 1, minor version 0. */
export const EDU_ID_VALUE = 0x010000ed;
/** RW: reads as the complement of what was written. */
export const EDU_LIVENESS = 0x04;
/** RW: n becomes n! mod 2^32 when {@link EDU_STATUS_COMPUTING} is clear again. */
export const EDU_FACTORIAL = 0x08;
export const EDU_STATUS = 0x20;
/** Status, RO: the factorial is being computed. */
export const EDU_STATUS_COMPUTING = 0x01;
/** Status: raise {@link EDU_IRQ_FACTORIAL} when it is computed. */
export const EDU_STATUS_IRQFACT = 0x80;
/** RO: reasons of the interrupt. */
export const EDU_IRQ_STATUS = 0x24;
/** WO: sets bits of the interrupt status and raises the interrupt. */
export const EDU_IRQ_RAISE = 0x60;
/** WO: clears bits of the interrupt status. */
export const EDU_IRQ_ACK = 0x64;
export const EDU_DMA_SRC = 0x80;
export const EDU_DMA_DST = 0x88;
/** Bytes. */
export const EDU_DMA_COUNT = 0x90;
/** A write without {@link EDU_DMA_RUN} is ignored, and so is any write of the DMA registers while RUN is set. */
export const EDU_DMA_CMD = 0x98;
/** DMA command: start; clear again when the transfer is over. */
export const EDU_DMA_RUN = 0x1;
/** DMA command: from the device to memory; without it from memory to the device. */
export const EDU_DMA_TO_MEMORY = 0x2;
/** DMA command: raise {@link EDU_IRQ_DMA} when the transfer is over. */
export const EDU_DMA_IRQ = 0x4;

export const EDU_IRQ_FACTORIAL = 0x001;
export const EDU_IRQ_DMA = 0x100;

/** Where the device's own buffer is in DMA source and destination. Processors cannot reach it. */
export const EDU_BUFFER = 0x40000;
export const EDU_BUFFER_BYTES = 4096;
/** Address bits of its DMA, unless it is made with others. */
export const EDU_DMA_MASK = 2 ** 28 - 1;
