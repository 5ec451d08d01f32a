import { invalidArgument } from '../../errors/cri-error.ts'
import type { ContainerConfig } from '../../generated/cri.ts'

const ANNOTATION_PREFIX = 'cdi.k8s.io/'
const NAME = '[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?'
const KIND = new RegExp(`^(${NAME})/(${NAME})$`)
const DEVICE = /^[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?$/

/** Whether a text is a CDI kind, `vendor/class`. */
export const isKind = (text: string): boolean => KIND.test(text)

/** Whether a text may name a device within its kind. */
export const isDeviceName = (text: string): boolean => DEVICE.test(text)

/**
 * The CDI devices that a container asks for, each once: those of the field, then those of the annotations `cdi.k8s.io/…` (a list with commas,
 * as device plugins of older kubelets give it). Throws INVALID_ARGUMENT for what is no qualified name, `vendor/class=device`.
 */
export function requestedCdiDevices(config: Pick<ContainerConfig, 'CDI_devices' | 'annotations'>): string[] {
  const annotated = Object.entries(config.annotations).filter(([key]) => key.startsWith(ANNOTATION_PREFIX))
    .toSorted(([a], [b]) => (a < b ? -1 : 1)).flatMap(([key, value]) => value.split(',').map((name) => qualified(name, `annotation ${key}`)))
  return [...new Set([...config.CDI_devices.map(({ name }) => qualified(name, 'CDI_devices')), ...annotated])]
}

function qualified(name: string, where: string): string {
  const at = name.indexOf('=')
  if (at > 0 && isKind(name.slice(0, at)) && isDeviceName(name.slice(at + 1))) return name
  throw invalidArgument(`${where}: ${JSON.stringify(name)} is not the name of a CDI device: it looks like vendor.com/class=device`)
}
