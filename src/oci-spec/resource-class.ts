/** Classes that an administrator defines for the whole node and a pod asks for by name, in annotations. */
export type ResourceClassKind = 'blockio' | 'rdt'

export interface RequestedClass {
  readonly name: string
  /** Whose annotation asks: the CRI request's own (the kubelet passes none by itself), or the pod's. */
  readonly origin: 'container' | 'pod'
}

/**
 * The class of a container, by the annotations that containerd and CRI-O know: `io.kubernetes.cri.KIND-class` of the container, then of the
 * pod `KIND.resources.beta.kubernetes.io/container.NAME`, then `KIND.resources.beta.kubernetes.io/pod`. Undefined for none, and for an empty name.
 */
export function requestedClass(kind: ResourceClassKind, containerName: string, container: Readonly<Record<string, string>>, pod: Readonly<Record<string, string>>): RequestedClass | undefined {
  const prefix = `${kind}.resources.beta.kubernetes.io`
  const own = container[`io.kubernetes.cri.${kind}-class`]
  const name = own ?? pod[`${prefix}/container.${containerName}`] ?? pod[`${prefix}/pod`]
  return name === undefined || name === '' ? undefined : { name, origin: own === undefined ? 'pod' : 'container' }
}
