import { criProtos } from '../../generated/protos.ts'

interface FieldDescriptor { readonly name: string; readonly typeName: string }
interface MessageDescriptor { readonly field: readonly FieldDescriptor[]; readonly nestedType: readonly { readonly name: string; readonly options?: { readonly mapEntry?: boolean } | null }[] }

/** Wrappers of one number, and sections that are refused as a whole. */
const whole = new Set(['Int64Value', 'WindowsContainerConfig', 'WindowsPodSandboxConfig'])

/** Every field of a CRI message down to those that hold a value, as api.proto has them: `linux.security_context.capabilities.add_capabilities`. */
export function leafFields(message: string): string[] {
  const definition = criProtos()[`runtime.v1.${message}`]
  if (definition === undefined || !('type' in definition)) throw new TypeError(`no message ${message}`)
  const { field, nestedType } = definition.type as MessageDescriptor
  const maps = new Set(nestedType.filter(({ options }) => options?.mapEntry === true).map(({ name }) => name))
  return field.flatMap(({ name, typeName }) => {
    const type = typeName.replace(/^.*\./, '')
    const below = type !== '' && !maps.has(type) && !whole.has(type) && criProtos()[`runtime.v1.${type}`]
    return below && 'type' in below && 'field' in below.type ? leafFields(type).map((leaf) => `${name}.${leaf}`) : [name]
  })
}
