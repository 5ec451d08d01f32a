/** The limit of containerd on a label: bytes of key and value together. */
const MAX_LABEL_BYTES = 4096

/**
 * The labels of an image that may be copied to a container. Those in the namespaces that containerd and the CRI service act upon
 * (`containerd.io/`, `io.cri-containerd`) would let an image steer them (CVE-2026-53488), and those that containerd would refuse fail the
 * whole call: both are left out.
 */
export function safeImageLabels(labels: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(Object.entries(labels).filter(([key, value]) =>
    !key.startsWith('containerd.io/') && !key.startsWith('io.cri-containerd') && Buffer.byteLength(key) + Buffer.byteLength(value) <= MAX_LABEL_BYTES))
}
