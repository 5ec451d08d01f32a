import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { mkdir, writeFile } from 'node:fs/promises'
import type { BlackHole } from '../../test/fixtures/black-hole.ts'
import type { Registry } from '../../test/fixtures/registry/registry.ts'
import { addImage, addLayer } from '../../test/images/image.ts'
import { ContentDir } from '../../test/images/layout.ts'
import { file } from '../../test/images/tar.ts'
import { hostArchitecture } from '../../test/images/tiny-elf.ts'
import { collectGarbage } from '../garbage.ts'
import type { BenchOptions } from '../options.ts'
import type { OperationName } from '../operations.ts'
import { type RunContext, callSettings, inTurn, settle, timed } from '../run-context.ts'
import type { Side } from '../side.ts'
import { removeImages, stored } from './pull.ts'

/** Odd, so that the median is a sample. */
const rounds = { full: 3, quick: 1 }
/** Without a fallback of its own, a dead mirror costs its 30 s with every request: a pull that takes longer than this is given up. */
const giveUpMs = { full: 5000, quick: 3000 }
/** Of pulls that end soon, in each round: they are compared with each other. */
const repeats = 3
const layerBytes = 64 * 1024
const firstPort = 5000
const kinds = ['black hole', 'silent mirror'] as const
type Kind = (typeof kinds)[number]

/** Registries whose first mirror is dead. What is known of a mirror goes from pull to pull, so each round has one of its own. */
const deadFirst = (kind: Kind, round: number): string => `${kind.replace(' ', '-')}-${round}.example`
const healthy = 'healthy.example'
const refAt = (registry: string): string => `${registry}/cri-shim/bench-small:1`
const roundsOf = ({ quick }: BenchOptions): number => (quick ? rounds.quick : rounds.full)

/** Builds one small image into the registry's content directory, under the names of all registries that stand for it. */
export async function buildMirrorImages(contentDir: string, options: BenchOptions): Promise<void> {
  const content = new ContentDir(contentDir)
  const image = await addImage(content, [await addLayer(content, [file('small', Buffer.alloc(layerBytes, 'small'))])], hostArchitecture(), { Cmd: ['/nothing'] })
  const registries = [healthy, ...kinds.flatMap((kind) => Array.from({ length: roundsOf(options) }, (_, index) => deadFirst(kind, index + 1)))]
  for (const registry of registries) content.name(refAt(registry), image)
  await content.finish()
}

export interface MirrorStageOptions {
  readonly registry: Registry
  readonly certsDir: string
  readonly blackHole: BlackHole
}

/** A pull through a first mirror of which nothing is known and nothing is heard, the next one after it, and one without such a mirror. */
export async function mirrorStage(context: RunContext, { registry, certsDir, blackHole }: MirrorStageOptions): Promise<void> {
  await using stack = new AsyncDisposableStack()
  await writeMirrors(certsDir, healthy, [registry.url])
  for (let round = 1; round <= roundsOf(context.options); round++) {
    await writeMirrors(certsDir, deadFirst('black hole', round), [`http://${blackHole.address}:${firstPort + round}`, registry.url])
    await writeMirrors(certsDir, deadFirst('silent mirror', round), [stack.use(await startSilent()).url, registry.url])
  }
  await context.phase('pull behind dead mirrors', () => inTurn(context, 'PullImage behind dead mirrors', 1, roundsOf(context.options), async (side, record, round) => {
    for (let time = 0; time < repeats; time++) {
      await wholePull(context, side, healthy, (image) => timed(record, 'PullImage of a small image', () => side.cri.image.PullImage({ image: { image } }, callSettings(context))))
    }
    if (round === 0) return
    for (const kind of kinds) {
      await wholePull(context, side, deadFirst(kind, round), async (image) => {
        const [requestsBefore, started] = [registry.requests.length, performance.now()]
        await pullOrGiveUp(context, side, image, `PullImage behind a ${kind}`)
        const firstByteMs = Math.min(...registry.requests.slice(requestsBefore).flatMap((request) => (request.kind === 'blob' ? request.firstByteMs ?? [] : [])))
        if (firstByteMs === Infinity) givenUp(context, side, `first byte behind a ${kind}`)
        else context.samples.add(side.name, `first byte behind a ${kind}`, 1, firstByteMs - started)
      })
      for (let time = 0; time < repeats; time++) {
        if (!(await wholePull(context, side, deadFirst(kind, round), async (image) => pullOrGiveUp(context, side, image, `PullImage again behind a ${kind}`)))) break
      }
    }
  }))
}

/** One that starts and ends without the image. */
async function wholePull<T>(context: RunContext, side: Side, registry: string, pull: (image: string) => Promise<T>): Promise<T> {
  await collectGarbage(side.containerd.socket)
  const before = await stored(side)
  await settle(context)
  const result = await pull(refAt(registry))
  await removeImages(context, side, [refAt(registry)], before)
  return result
}

const limitOf = ({ options }: RunContext): number => (options.quick ? giveUpMs.quick : giveUpMs.full)

function givenUp(context: RunContext, side: Side, operation: OperationName): void {
  context.samples.addGivenUp(side.name, operation, 1, limitOf(context))
}

/** Whether the pull came to its end in time. */
async function pullOrGiveUp(context: RunContext, side: Side, image: string, operation: OperationName): Promise<boolean> {
  const limit = AbortSignal.timeout(limitOf(context))
  const started = performance.now()
  try {
    await side.cri.image.PullImage({ image: { image } }, { ...callSettings(context), signal: AbortSignal.any([context.signal, limit]) })
  } catch (error) {
    context.signal.throwIfAborted()
    if (!limit.aborted) throw error
    givenUp(context, side, operation)
    await settle(context)
    return false
  }
  context.samples.add(side.name, operation, 1, performance.now() - started)
  return true
}

/** Hosts in order, the last one as the registry's own. */
async function writeMirrors(certsDir: string, registry: string, urls: readonly string[]): Promise<void> {
  await mkdir(join(certsDir, registry), { recursive: true })
  const hosts = urls.map((url) => `[host."${url}"]\n  capabilities = ["pull", "resolve"]\n`).join('')
  await writeFile(join(certsDir, registry, 'hosts.toml'), `server = "${urls.at(-1)}"\n\n${hosts}`)
}

/** Takes connections and never answers. */
async function startSilent(): Promise<AsyncDisposable & { readonly url: string }> {
  const held = new Set<Socket>()
  const server = createServer((socket) => held.add(socket.on('error', () => undefined))).listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    [Symbol.asyncDispose]: async () => {
      for (const socket of held) socket.destroy()
      server.close()
      await once(server, 'close')
    },
  }
}
