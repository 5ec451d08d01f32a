import { CriError } from '../errors/cri-error.ts'
import type { ImageRef } from '../registry-mirrors/image-ref.ts'
import { type Arguments, UsageError } from './command.ts'

/** The image that a command was given. Throws a UsageError when it is missing or no image name. */
export async function imageArgument(command: string, { positionals }: Arguments): Promise<ImageRef> {
  const [name] = positionals
  if (name === undefined) throw new UsageError(`${command}: name an image, such as registry.k8s.io/pause:3.10`)
  const { parseImageRef } = await import('../registry-mirrors/image-ref.ts')
  try {
    return parseImageRef(name)
  } catch (error) {
    throw error instanceof CriError ? new UsageError(`${command}: ${error.message}`, { cause: error }) : error
  }
}
