/**
 * Descriptors of the VT-d invalidation queue: 128 bits each, four 32-bit words, lowest first.
 *
 * Source: Intel VT-d specification rev 5.0 §6.5.2.
 * Layout, by word (all other bits are reserved):
 *   every one       w0  type 3:0 and 11:9
 *   context cache   w0  G 5:4 · DID 31:16        w1  SID 15:0 · FM 17:16
 *   IOTLB           w0  G 5:4 · DW 6 · DR 7 · DID 31:16   w2  AM 5:0 · IH 6 · ADDR 31:12   w3  ADDR 63:32
 *   wait            w0  IF 4 · SW 5 · FN 6       w1  status data   w2, w3  status address 63:2
 * @module
 */
import type { WordReader, WordWriter } from "../words.ts";
import { GRANULARITY_PAGE } from "./registers.ts";

/** log2 of a descriptor's bytes. */
export const DESCRIPTOR_SHIFT = 4;
export const DESCRIPTOR_BYTES = 16;

/** §6.5.2.1 */
export const DESCRIPTOR_CONTEXT_CACHE = 0x1;
/** §6.5.2.3 */
export const DESCRIPTOR_IOTLB = 0x2;
/** §6.5.2.5; needs ECAP.DT. */
export const DESCRIPTOR_DEVICE_TLB = 0x3;
/** §6.5.2.7; needs ECAP.IR. */
export const DESCRIPTOR_INTERRUPT_ENTRY_CACHE = 0x4;
/** §6.5.2.8 */
export const DESCRIPTOR_WAIT = 0x5;

/** w0 of a context-cache or IOTLB descriptor: place of the granularity. */
export const DESCRIPTOR_G_SHIFT = 4;
/** w0 of a context-cache or IOTLB descriptor: place of the domain-id. */
export const DESCRIPTOR_DID_SHIFT = 16;
/** w0 of an IOTLB descriptor: drain writes, drain reads. */
export const IOTLB_DW = 1 << 6;
export const IOTLB_DR = 1 << 7;
/** w0 of a wait descriptor: raise the invalidation completion event. */
export const WAIT_IF = 1 << 4;
/** w0 of a wait descriptor: write the status data. */
export const WAIT_SW = 1 << 5;
/** w0 of a wait descriptor: what follows starts only after all before it. */
export const WAIT_FN = 1 << 6;

/** Reserved bits of the four words, by descriptor. */
export const CONTEXT_CACHE_RESERVED = [0x0000ffc0, 0xfffc0000, 0xffffffff, 0xffffffff] as const;
export const IOTLB_RESERVED = [0x0000ff00, 0xffffffff, 0x00000f80, 0x00000000] as const;
export const WAIT_RESERVED = [0xffffff80, 0x00000000, 0x00000003, 0x00000000] as const;

/** A descriptor as four 32-bit words, unsigned, lowest first. */
export type Descriptor = readonly [w0: number, w1: number, w2: number, w3: number];

/** Stores a descriptor at `at` (16-byte aligned) of memory that hardware does not read yet: before IQT moves past it. */
export function storeDescriptor(words: WordWriter, at: number, descriptor: Descriptor): void {
  for (let i = 0; i < 4; i++) words.store32(at + 4 * i, descriptor[i]);
}

/** Loads a descriptor. */
export function loadDescriptor(words: WordReader, at: number): Descriptor {
  return [words.load32(at), words.load32(at + 4), words.load32(at + 8), words.load32(at + 12)];
}

/** Type of a descriptor: bits 3:0, and 11:9 above them. */
export function descriptorType(w0: number): number {
  return (w0 & 0xf) | ((w0 >>> 5) & 0x70);
}

/**
 * Invalidates context-cache entries.
 * @param granularity - GRANULARITY_GLOBAL, _DOMAIN (uses `domainId`) or _DEVICE (uses all)
 * @param domainId - the one that the context entry had
 * @param functionMask - 0 compares the whole source-id, 1 all but bit 2, 2 all but 2:1, 3 all but 2:0
 */
export function contextCacheDescriptor(
  granularity: number,
  domainId = 0,
  sourceId = 0,
  functionMask = 0,
): Descriptor {
  return [
    ((domainId << DESCRIPTOR_DID_SHIFT) |
      (granularity << DESCRIPTOR_G_SHIFT) |
      DESCRIPTOR_CONTEXT_CACHE) >>>
      0,
    (functionMask << 16) | sourceId,
    0,
    0,
  ];
}

/**
 * Invalidates IOTLB entries and drains the DMA that used them.
 * @param granularity - GRANULARITY_GLOBAL, _DOMAIN (uses `domainId`) or _PAGE (uses all)
 * @param iova - aligned to 2^`addressMask` pages
 * @param addressMask - log2 of the number of 4 KiB pages, at most CAP.MAMV
 */
export function iotlbDescriptor(
  granularity: number,
  domainId = 0,
  iova = 0,
  addressMask = 0,
): Descriptor {
  const page = granularity === GRANULARITY_PAGE;
  return [
    ((domainId << DESCRIPTOR_DID_SHIFT) |
      IOTLB_DR |
      IOTLB_DW |
      (granularity << DESCRIPTOR_G_SHIFT) |
      DESCRIPTOR_IOTLB) >>>
      0,
    0,
    page ? (iova % 2 ** 32) + addressMask : 0,
    page ? Math.floor(iova / 2 ** 32) : 0,
  ];
}

/** Writes `statusData` (32 bits) to `statusAddress` (4-byte aligned) when all descriptors before it are done. */
export function waitDescriptor(statusAddress: number, statusData: number): Descriptor {
  return [
    DESCRIPTOR_WAIT | WAIT_SW | WAIT_FN,
    statusData >>> 0,
    statusAddress % 2 ** 32,
    Math.floor(statusAddress / 2 ** 32),
  ];
}
