import { constants } from 'node:os'
import { signalNumber } from '../container/stop-container.ts'
import { type ContainerStatus, type Mount, Signal } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import { repoNames } from '../state/image-names.ts'
import type { ImageStore } from '../state/image-store.ts'
import type { Container } from '../state/records.ts'
import type { Store } from '../state/store.ts'
import { containerState } from './filters.ts'

/** The containers of a pod. */
export function containersOf(containers: Pick<Store<Container>, 'values'>, sandboxId: string): Container[] {
  return [...containers.values()].filter((container) => container.metadata.sandboxId === sandboxId)
}

/** A container's status as CRI gives it. */
export function containerStatusMessage(container: Container, images: ImageStore): Init<ContainerStatus> {
  const { config, imageRef, logPath } = container.metadata
  const { status, user, resources = null } = container
  const image = images.byId(imageRef)
  const names = image === undefined ? { tags: [], digests: [] } : repoNames(image)
  const begun = status.state !== 'created'
  const ended = status.state === 'exited' || status.state === 'unknown'
  return {
    id: container.id,
    metadata: config.metadata,
    state: containerState(container),
    created_at: String(status.createdAt),
    started_at: String(begun ? status.startedAt : 0n),
    finished_at: String(ended ? status.finishedAt : 0n),
    exit_code: status.exitCode,
    // As the kubelet and people know it: a tag when the image has one.
    image: names.tags[0] === undefined ? config.image : { ...config.image, image: names.tags[0] },
    image_ref: names.digests[0] ?? imageRef,
    image_id: imageRef,
    reason: ended ? status.reason : '',
    message: status.message,
    labels: config.labels,
    annotations: config.annotations,
    mounts: config.mounts.map((mount) => withImageRef(mount, images)),
    log_path: logPath,
    resources: resources === null ? null : { linux: resources },
    user: user === undefined ? null : { linux: { uid: String(user.uid), gid: String(user.gid), supplemental_groups: user.additionalGids.map(String) } },
    stop_signal: stopSignal(container),
  }
}

/** The mounted image's id. Containers that containerd's own plugin made name the image as the request did. */
function withImageRef(mount: Mount, images: ImageStore): Mount {
  if (mount.image === null || mount.image.image_ref !== '') return mount
  const { image } = mount.image
  return { ...mount, image: { ...mount.image, image_ref: (images.byName(image) ?? images.byId(image))?.id ?? '' } }
}

/** Signals as CRI numbers them, by name: `SIGRTMIN+3` is SIGRTMINPLUS3 there. */
export function criSignal(name: string): number {
  const number = name === '' ? constants.signals.SIGTERM : signalNumber(name)
  const known = Object.entries(constants.signals).find(([, value]) => value === number)?.[0]
  const realTime = number < 34 ? undefined : number <= 49 ? `SIGRTMIN${number === 34 ? '' : `PLUS${number - 34}`}` : `SIGRTMAX${number === 64 ? '' : `MINUS${64 - number}`}`
  return (Signal as Readonly<Record<string, number>>)[known ?? realTime ?? ''] ?? Signal.RUNTIME_DEFAULT
}

function stopSignal(container: Container): number {
  const requested = container.metadata.config.stop_signal
  if (requested !== Signal.RUNTIME_DEFAULT) return requested
  try {
    return criSignal(container.metadata.stopSignal)
  } catch {
    // An image's STOPSIGNAL that names no signal: what is sent is SIGTERM (see CreateContainer).
    return Signal.SIGTERM
  }
}

/** The name of a CRI signal number as signalNumber() takes it: SIGRTMINPLUS3 → SIGRTMIN+3. Undefined for a number that CRI does not define. */
export function signalName(signal: number): string | undefined {
  const name = Object.entries(Signal).find(([, value]) => value === signal)?.[0]
  return name?.replace('PLUS', '+').replace('MINUS', '-')
}
