import assert from 'node:assert/strict'
import { it } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { CriError } from '../../errors/cri-error.ts'
import { backgroundCtx, type Ctx, withSignal } from '../../observability/context.ts'
import { createLogger } from '../../observability/logger.ts'
import { parseImageRef } from '../../registry-mirrors/image-ref.ts'
import { PullCoordinator } from './coordinator.ts'
import type { PulledImage, PullRequest } from './puller.ts'

const base = backgroundCtx(createLogger('fatal'), 'test')
const request = (overrides: Partial<PullRequest> = {}): PullRequest => ({ ref: parseImageRef('registry.k8s.io/pause:3.10'), auth: null, snapshotter: 'overlayfs', pinned: false, ...overrides })

function fixture() {
  const pulls: { readonly signal: AbortSignal; readonly end: PromiseWithResolvers<PulledImage> }[] = []
  const coordinator = new PullCoordinator({
    pull: async (ctx: Ctx) => {
      const end = Promise.withResolvers<PulledImage>()
      pulls.push({ signal: ctx.signal, end })
      return end.promise
    },
  })
  return { coordinator, pulls }
}

const auth = (password: string): PullRequest['auth'] => ({ username: 'u', password, auth: '', server_address: '', identity_token: '', registry_token: '' })

it('makes one pull of those of one image with one set of credentials, several of others', async () => {
  const { coordinator, pulls } = fixture()
  const same = [coordinator.pull(base, request()), coordinator.pull(base, request())]
  const others = [request({ auth: auth('a') }), request({ auth: auth('b') }), request({ snapshotter: 'native' }), request({ pinned: true })].map((each) => coordinator.pull(base, each))
  assert.equal(pulls.length, 5)
  for (const [at, { end }] of pulls.entries()) end.resolve({ id: String(at), names: [] })
  assert.deepEqual((await Promise.all(same)).map(({ id }) => id), ['0', '0'])
  await Promise.all(others)
  assert.equal(coordinator.running, 0)
})

it('goes on until the last one who waits is gone; who comes then begins anew', async () => {
  const { coordinator, pulls } = fixture()
  const [one, two] = [new AbortController(), new AbortController()]
  const waiting = [one, two].map((stop) => coordinator.pull(withSignal(base, stop.signal), request()))
  one.abort(new Error('one is gone'))
  await assert.rejects(waiting[0] ?? assert.fail(), /one is gone/)
  assert.equal(pulls[0]?.signal.aborted, false)
  two.abort(new Error('two is gone'))
  await assert.rejects(waiting[1] ?? assert.fail(), /two is gone/)
  assert.equal(pulls[0]?.signal.aborted, true)
  const third = coordinator.pull(base, request())
  assert.equal(pulls.length, 2)
  pulls[0]?.end.reject(new Error('cancelled'))
  await turn()
  assert.equal(coordinator.running, 1, 'the end of the first is not that of the second')
  pulls[1]?.end.resolve({ id: 'x', names: [] })
  await third
})

it('waits at the end also for what is being ended already, and begins nothing new', async () => {
  const { coordinator, pulls } = fixture()
  const gone = new AbortController()
  const first = coordinator.pull(withSignal(base, gone.signal), request())
  gone.abort(new Error('gone'))
  await assert.rejects(first, /gone/)
  const second = coordinator.pull(base, request({ pinned: true }))
  let closed = false
  const closing = coordinator.close().then(() => { closed = true })
  assert.ok(pulls[1]?.signal.aborted)
  pulls[1]?.end.reject(pulls[1].signal.reason)
  await assert.rejects(second, (error) => error instanceof CriError && error.reason === 'Shutdown')
  await turn()
  assert.equal(closed, false)
  pulls[0]?.end.reject(new Error('cancelled'))
  await closing
  await assert.rejects(coordinator.pull(base, request()), /shutting down/)
})
