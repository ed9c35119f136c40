from refuse_future import RefuseFuturePlugin

refuse_future = RefuseFuturePlugin()
