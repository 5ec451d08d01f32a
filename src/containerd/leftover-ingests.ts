import type { Ctx } from '../observability/context.ts'
import type { Containerd } from './containerd.ts'
import { linkedPrefix } from './content-writer.ts'

/** The refs of a pull's ingests end in the digest of what is brought. */
const digestAtEnd = /-(sha(?:256|384|512):[0-9a-f]+)$/

/**
 * Throws ingests away that nobody goes on with, and that would stay until the leases which `isOurs` picks end: notes of blobs (see ContentWriter) that a crash
 * kept from being committed, and ingests of blobs that are there. For the start: nobody may be writing under these leases.
 */
export async function removeLeftoverIngests(ctx: Ctx, { leases, content }: Pick<Containerd, 'leases' | 'content'>, isOurs: (lease: string) => boolean): Promise<void> {
  for (const { id: lease } of await leases.list(ctx)) {
    if (!isOurs(lease)) continue
    for (const { id: ref, type } of await leases.resources(ctx, lease)) {
      if (type !== 'ingests') continue
      const digest = digestAtEnd.exec(ref)?.[1]
      if (!ref.startsWith(linkedPrefix) && (digest === undefined || await content.info(ctx, digest) === undefined)) continue
      await content.abort(ctx, ref, lease).catch((error: unknown) => ctx.log.warn({ err: error, ref, lease }, 'cannot remove an ingest that a crash left: it goes with its lease'))
    }
  }
}
