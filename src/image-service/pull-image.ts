import { aborted, invalidArgument } from '../errors/cri-error.ts'
import { inKubeletsWords } from '../errors/registry-unavailable.ts'
import type { PullImageRequest, PullImageResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import { parseImageRef } from '../registry-mirrors/image-ref.ts'
import type { ImageServiceDeps } from './deps.ts'
import type { PullRequest } from './pull/puller.ts'
import type { Image } from '../state/records.ts'

type Deps = Pick<ImageServiceDeps, 'pulls' | 'catalog' | 'images' | 'snapshotterOf' | 'pinned'>

/** Of a pod: the runtime handler that an image is pulled for, as containerd's CRI plugin has it. The kubelet names the handler itself only behind a feature gate. */
const handlerAnnotation = 'io.containerd.cri.runtime-handler'

/** PullImage: answers with the image's id, the digest of its configuration. */
export async function pullImage(deps: Deps, ctx: Ctx, request: PullImageRequest): Promise<Init<PullImageResponse>> {
  if (request.image === null || request.image.image === '') throw invalidArgument('image is missing')
  const ref = parseImageRef(request.image.image)
  const { image: { runtime_handler: given }, sandbox_config: pod } = request
  const handler = given === '' ? pod?.annotations[handlerAnnotation] ?? '' : given
  const wanted: PullRequest = { ref, auth: request.auth, snapshotter: deps.snapshotterOf(handler), pinned: deps.pinned(ref.toString()) }
  const image = await pullNow(deps, ctx, wanted).catch((error: unknown) => {
    throw inKubeletsWords(error)
  })
  return { image_ref: image.id }
}

/** Pulls and waits until the image store knows it. */
export async function pullNow(deps: Pick<Deps, 'pulls' | 'catalog' | 'images'>, ctx: Ctx, request: PullRequest): Promise<Image> {
  const pulled = await deps.pulls.pull(ctx, request)
  for (const name of pulled.names) await deps.catalog.refresh(ctx, name)
  const image = deps.images.byId(pulled.id)
  if (image === undefined) throw aborted(`image ${request.ref.toString()} was pulled and is gone again: it was removed at the same moment; pull it again`, { reason: 'ImageVanished' })
  return image
}
