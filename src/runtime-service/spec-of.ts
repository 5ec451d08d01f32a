import type { ContainerRecord } from '../containerd/containers.ts'
import { parseOciSpec } from '../oci-spec/json.ts'
import type { OciSpec } from '../oci-spec/types.ts'

/** The OCI spec in containerd's record, null when there is none. */
export function specOf(record: ContainerRecord | undefined): OciSpec | null {
  return record?.spec ? parseOciSpec(record.spec.value) : null
}
